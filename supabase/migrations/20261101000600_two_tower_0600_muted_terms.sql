-- Words and tags that a reader does not want to meet. The reader writes the rows, under row level
-- security. Tags are part of every search. Words are looked for in the texts of a page, which lie
-- in the app's tables and are read as the caller.

create table public.muted_terms (
  user_id uuid not null default auth.uid() references two_tower.users (id) on delete cascade,
  kind text not null constraint kind_of_term_is_known check (kind in ('word', 'tag')),
  term text not null,
  created_at timestamptz not null default two_tower.now(),
  primary key (user_id, kind, term)
);
comment on table public.muted_terms is
  'Words and tags of posts that a user does not want to see, at most 200. The user inserts and deletes the rows.';
comment on column public.muted_terms.kind is 'word: posts whose text has it as a whole word, or as words in a row. tag: posts that have exactly this tag.';
comment on column public.muted_terms.term is 'At most 200 bytes. Of words, neither case nor accents count.';

-- The field's tool splits texts: only its words are compared, so nothing in a term is a pattern.
-- Before Postgres 18 it folds case by LC_CTYPE alone, which may be C: lower() knows the provider,
-- unless the app's column says otherwise.
create function two_tower.fold_text(p_text text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select lower(regexp_replace(normalize(left(p_text, 100000), nfkd), '[\u0300-\u036f]', '', 'g')
    collate "default");
$$;
comment on function two_tower.fold_text(text) is 'Returns a text in lower case and without accents, at most its first 100,000 characters: no text search vector holds much more.';

create function two_tower.write_word_query(p_words text[]) returns tsquery
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_word text;
  v_query tsquery := '';
begin
  foreach v_word in array p_words loop
    v_query := v_query || phraseto_tsquery('simple', two_tower.fold_text(v_word));
  end loop;
  return nullif(v_query, '');
end
$$;
comment on function two_tower.write_word_query(text[]) is 'Returns what a text with any of these words matches. Returns null for no word.';

-- Two sessions: the user's row is locked, so that both together keep to the bound.
create function two_tower.admit_muted_term() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.add_users(array[new.user_id]);
  perform from two_tower.users u where u.id = new.user_id for no key update;
  if octet_length(new.term) > 200
    or (select count(*) >= 200 from public.muted_terms m where m.user_id = new.user_id) then
    raise exception 'at most 200 terms are muted, of at most 200 bytes each'
      using errcode = 'TT002', hint = 'Delete rows of muted_terms first, or mute a shorter term.';
  elsif new.kind = 'word' and two_tower.write_word_query(array[new.term]) is null then
    raise exception 'the term holds no word' using errcode = '22023',
      hint = 'Mute a word of letters or digits.';
  end if;
  return new;
end
$$;
comment on function two_tower.admit_muted_term() is 'Raises TT002 beyond 200 terms of a user, and for a term of more than 200 bytes. Raises 22023 for a word without a letter or digit. Definer: clients have no grant on users.';
create trigger admit_muted_term before insert on public.muted_terms
  for each row execute function two_tower.admit_muted_term();
