-- What back ends take out of all feeds.

-- What an operator removes stays removed, whatever the author does to the row.
create function two_tower.moderate_post(p_post_id bigint, p_is_removed boolean, p_reason text)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update two_tower.posts p set
    removed_at = case when p_is_removed then coalesce(p.removed_at, two_tower.now()) end,
    removed_by = case when p_is_removed then two_tower.session_role() end,
    removal_reason = case when p_is_removed then p_reason end
  where p.id = p_post_id;
  if not found then
    raise exception 'there is no such post' using errcode = '22023',
      hint = 'Name it by p_post_id, or by p_post_key and p_post_source.';
  end if;
  insert into two_tower.post_changes (post_id) values (p_post_id);
end
$$;
comment on function two_tower.moderate_post(bigint, boolean, text) is 'Removes a post from the feed, or takes that back. Raises 22023 for an unknown post.';

create function public.remove_post(p_post_id bigint default null, p_reason text default null,
  p_post_key text default null, p_post_source text default null)
returns void language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.moderate_post(
    two_tower.identify_post(p_post_id, p_post_key, p_post_source), true, p_reason);
$$;
comment on function public.remove_post(bigint, text, text, text) is
  'For back ends with the service role: takes a post out of all feeds, at once. Its author cannot bring it back. The row in the app''s table stays as it is, and a row with another key is another post. Raises 22023 for an unknown post.';

create function public.restore_post(p_post_id bigint default null,
  p_post_key text default null, p_post_source text default null)
returns void language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.moderate_post(
    two_tower.identify_post(p_post_id, p_post_key, p_post_source), false, null);
$$;
comment on function public.restore_post(bigint, text, text) is
  'For back ends with the service role: takes a removal back. The post is ranked again from the next tick on. Raises 22023 for an unknown post.';
