-- What users ask for and decide themselves.

create function public.more_from_author(p_author_key text, p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at
  from two_tower.page_for(two_tower.require_user(), least(100, coalesce(p_limit, 20)),
    p_kind => 'author', p_text => p_author_key) f;
$$;
comment on function public.more_from_author(text, integer) is 'Returns the newest posts of an author, seen ones too, but none that the user hid. p_author_key: the author as the app names it; author_id of a page does too. Only posts that the user may read; none of an author with whom there is a block. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function public.trending_posts(p_tag text default null, p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at, f.score
  from two_tower.page_for(two_tower.require_user(), least(100, coalesce(p_limit, 20)),
    p_kind => 'trending', p_text => p_tag) f;
$$;
comment on function public.trending_posts(text, integer) is 'Returns the most popular posts of the last settings.trending_window, with the popularity as score. p_tag: those with this tag; null: all. Authors take turns. Seen ones stand there too, but none that the user hid. Only posts that the user may read. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function public.set_interests(p_texts text[] default '{}', p_post_keys text[] default '{}',
  p_post_source text default null)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_keys text[] := array_remove(p_post_keys, null);
  v_ids bigint[] := array(
    select two_tower.identify_post(null, k.key, p_post_source)
    from unnest(v_keys) with ordinality as k (key, place) order by k.place);
  v_readable bigint[];
begin
  perform two_tower.require_user();
  v_readable := array(select r from two_tower.find_readable(array_remove(v_ids, null)) r);
  for v_place in 1..cardinality(v_ids) loop
    if (v_ids[v_place] = any (v_readable)) is not true then
      perform two_tower.refuse_post(v_keys[v_place]);
    end if;
  end loop;
  perform two_tower.tell_interests(coalesce(p_texts, '{}'), v_ids);
end
$$;
comment on function public.set_interests(text[], text[], text) is
  'Tells what the signed-in user is interested in, in the place of what was told before: p_texts, subjects of at most 200 characters each, and p_post_keys, posts that the user picked, of the table p_post_source where several are attached. At most 20 together. While the user has engaged with less than settings.told_until posts, settings.told_share of each page, falling, goes to posts about them (source told). A worker encodes the texts within seconds. Raises TT002 for more or longer ones, 22023 for a blank one, 23503 for a post that does not exist or that the user may not read, and 42501 when nobody is signed in.';
