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
