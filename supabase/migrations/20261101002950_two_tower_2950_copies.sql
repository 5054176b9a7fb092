-- Posts that say the same. A crowd of accounts with one text, or an author who repeats a post,
-- would fill pages: what is near to a reader comes with all that is near to it. Of posts that say
-- the same, the oldest is the original and stands for all. The others are copies: whoever copies a
-- post takes nothing from it. So are posts that say what the reader knows.

create type two_tower.copies as (copy_ids bigint[], original_ids bigint[], missing_ids bigint[]);
comment on type two_tower.copies is 'What find_copies() finds in a list.';
comment on column two_tower.copies.original_ids is 'For each of copy_ids the post that stands for it. Null: the reader knows what it says.';
comment on column two_tower.copies.missing_ids is 'Posts that are no part of the list, and have the very text of one of it for longer.';

create function two_tower.may_stand(p_user_id uuid, p_post_id bigint, p_author_id uuid)
returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return p_author_id is distinct from p_user_id
    and exists (select from two_tower.listed_posts l where l.id = p_post_id)
    and not exists (select from two_tower.withheld_authors a
      where a.user_id = p_user_id and a.author_id = p_author_id);
end
$$;
comment on function two_tower.may_stand(uuid, bigint, uuid) is 'Returns whether a post may stand for its copies on a page of the user: it is listed, and of no withheld author.';

create function two_tower.has_copies(p_reader two_tower.reader, p_kept bigint[], p_part bigint[])
returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_distance double precision := -p_reader.copy_similarity;
begin
  return (
    with kept as materialized (
      select b.post_id, b.base_embedding as vector from two_tower.base_embeddings b
      where b.post_id = any (p_kept)
    ), part as materialized (
      select b.post_id, b.base_embedding as vector from two_tower.base_embeddings b
      where b.post_id = any (p_part)
    )
    select exists (
      select from two_tower.posts c
        join two_tower.posts q on q.content_hash = c.content_hash and q.id <> c.id
      where c.id = any (p_part) and q.encoded_hash is not null)
    or exists (
      select from part c join kept k on k.post_id <> c.post_id
        and k.vector operator(extensions.<#>) c.vector < v_distance)
    or exists (
      select from part c join part o on o.post_id < c.post_id
        and o.vector operator(extensions.<#>) c.vector < v_distance));
end
$$;
comment on function two_tower.has_copies(two_tower.reader, bigint[], bigint[]) is 'Returns whether one of p_part says what another one of it or of p_kept says, or has the very text of any encoded post.';

-- Of a text that a crowd posts, the oldest ten and the newest ten are asked for: the oldest one
-- stands, and the newest is what comes back when others are deleted.
create function two_tower.name_copies(p_reader two_tower.reader, p_kept bigint[], p_known integer,
  p_part bigint[], p_ranked bigint[])
returns two_tower.copies language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_named two_tower.copies;
begin
  with listed as materialized (
    select g.id, g.place, p.content_hash, p.author_id,
      case when g.place <= p_known then '-infinity' else p.stands_since end as stands_since,
      (select b.base_embedding
       from two_tower.base_embeddings b where b.post_id = g.id) as vector
    from unnest(p_kept || p_part) with ordinality as g (id, place)
      cross join lateral (
        select q.content_hash, q.author_id, q.stands_since
        from two_tower.posts q where q.id = g.id offset 0) p
  ), pair as (
    select l.id, l.place, l.author_id, l.stands_since, c.id as other_id,
      c.author_id as other_author_id, c.stands_since as other_since,
      (l.stands_since, greatest(l.id, ~l.id)) < (c.stands_since, greatest(c.id, ~c.id))
        as is_older
    from listed l
      join listed c on l.place < c.place and c.place > cardinality(p_kept) and l.id <> c.id
        and (l.content_hash = c.content_hash
          or l.vector operator(extensions.<#>) c.vector < -p_reader.copy_similarity)
    offset 0
  ), likeness as (
    select p.other_id as copy_id, p.id as original_id, p.place <= p_known as is_known,
      p.author_id, p.stands_since
    from pair p where p.is_older
    union all
    select p.id, p.other_id, false, p.other_author_id, p.other_since
    from pair p where not p.is_older
  ), text as materialized (
    select c.id, c.place, t.id as other_id,
      (t.stands_since, greatest(t.id, ~t.id)) < (c.stands_since, greatest(c.id, ~c.id))
        and two_tower.may_stand(p_reader.user_id, t.id, t.author_id) as may_stand,
      t.id = any (p_ranked) as is_ranked, t.stands_since
    from listed c
      cross join lateral (
        (select q.id, q.author_id, q.stands_since from two_tower.posts q
         where q.content_hash = c.content_hash and q.encoded_hash is not null
         order by q.stands_since limit 10)
        union all
        (select q.id, q.author_id, q.stands_since from two_tower.posts q
         where q.content_hash = c.content_hash and q.encoded_hash is not null
         order by q.stands_since desc limit 10)) t
    where c.place > cardinality(p_kept) and t.id <> c.id
  ), copy as (
    select distinct on (f.copy_id) f.copy_id, f.original_id
    from (
      select l.copy_id, case when not l.is_known then l.original_id end as original_id,
        l.stands_since
      from likeness l
      where l.is_known or two_tower.may_stand(p_reader.user_id, l.original_id, l.author_id)
      union all
      select t.id, case when t.is_ranked then t.other_id end, t.stands_since
      from text t
      where t.is_ranked and t.may_stand or (select exists (select from two_tower.user_posts u
        where u.user_id = p_reader.user_id and u.post_id = t.other_id))
    ) f
    order by f.copy_id, f.original_id is not null, f.stands_since,
      greatest(f.original_id, ~f.original_id)
  )
  select array(select c.copy_id from copy c order by c.copy_id) as copy_ids,
    array(select c.original_id from copy c order by c.copy_id) as original_ids,
    array(select distinct t.other_id from text t
      where t.may_stand and not t.is_ranked) as missing_ids
  into v_named;
  return v_named;
end
$$;
comment on function two_tower.name_copies(two_tower.reader, bigint[], integer, bigint[], bigint[]) is 'Returns the copies in a part of p_ranked, among themselves and with p_kept, of which the reader knows the first p_known.';

-- Part by part of the list, and no further than the page needs. What was found good so far is
-- compared with, so that a long list costs little more than a long page. Copies are rare: only
-- where there is one is more asked for.
create function two_tower.find_copies(p_reader two_tower.reader, p_ranked bigint[],
  p_wanted integer, p_page bigint[] default '{}')
returns two_tower.copies language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_kept bigint[] := coalesce((select u.recent_post_ids from two_tower.user_embeddings u
    where u.user_id = p_reader.user_id), '{}');
  v_known integer := cardinality(v_kept);
  v_found two_tower.copies := row('{}'::bigint[], '{}'::bigint[], '{}'::bigint[]);
  v_new two_tower.copies;
  v_part bigint[];
  v_from integer := 1;
begin
  v_kept := v_kept || p_page;
  while p_reader.copy_similarity is not null and v_from <= cardinality(p_ranked)
    and cardinality(v_kept) - v_known < p_wanted loop
    v_part := p_ranked[v_from:v_from + case v_from when 1 then p_wanted else 20 end - 1];
    v_from := v_from + cardinality(v_part);
    if not two_tower.has_copies(p_reader, v_kept, v_part) then
      v_kept := v_kept || v_part;
      continue;
    end if;
    v_new := two_tower.name_copies(p_reader, v_kept, v_known, v_part,
      p_page || p_ranked);
    v_found.copy_ids := v_found.copy_ids || v_new.copy_ids;
    v_found.original_ids := v_found.original_ids || v_new.original_ids;
    v_found.missing_ids := v_found.missing_ids || v_new.missing_ids;
    v_kept := v_kept[:v_known] || array(
      select g.id
      from unnest(v_kept[v_known + 1:] || v_part || v_new.original_ids) with ordinality
        as g (id, place)
      where g.id <> all (v_new.copy_ids) group by g.id order by min(g.place));
  end loop;
  return v_found;
end
$$;
comment on function two_tower.find_copies(two_tower.reader, bigint[], integer, bigint[]) is
  'Returns which posts of a list, best first and none of them seen, are copies: of an older one that may be shown to the reader, of one that the reader engaged with lately, or with the very text of one that the reader has seen. A copy has the same text, or one whose base embedding has a cosine above settings.copy_similarity. p_page: posts that are compared with, and stand before the list. Looks no further down than p_wanted posts that are none.';
