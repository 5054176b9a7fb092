-- Where a reader's scroll has come to. A cursor holds the posts that were shown, and the next page
-- is one without them. So it neither repeats nor leaves out posts, whatever is written meanwhile.
--
-- A cursor is base64url of: version (1 byte), flags (1 byte: 0), a keyed hash (8 bytes), blocks. A
-- block is its length (2 bytes) and at most 100 posts. The newest block comes first; the oldest
-- ones are left out where a cursor would be longer than 4,096 characters.
--
-- A block holds ids in order of max(id, ~id), which is never negative. Of each, it holds by how
-- much that is more than the one before, and whether the id is negative. The first byte has the
-- sign and 6 bits, all others have 7, the lowest ones first. The highest bit says that more follow.

create function two_tower.write_block(p_post_ids bigint[]) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_block text := '';
  v_id bigint;
  v_last bigint := 0;
  v_rest bigint;
  v_byte integer;
begin
  for v_id in select i from unnest(p_post_ids) i order by greatest(i, ~i) loop
    v_rest := greatest(v_id, ~v_id) - v_last;
    v_last := v_last + v_rest;
    v_byte := (v_rest & 63) << 1 | (v_id < 0)::integer;
    v_rest := v_rest >> 6;
    while v_rest > 0 loop
      v_block := v_block || lpad(to_hex(v_byte | 128), 2, '0');
      v_byte := v_rest & 127;
      v_rest := v_rest >> 7;
    end loop;
    v_block := v_block || lpad(to_hex(v_byte), 2, '0');
  end loop;
  return decode(lpad(to_hex(length(v_block) / 2), 4, '0') || v_block, 'hex');
end
$$;
comment on function two_tower.write_block(bigint[]) is 'Returns at most 100 ids of posts as a block of a cursor.';

create function two_tower.read_blocks(p_blocks bytea) returns bigint[]
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_ids bigint[] := '{}';
  v_at integer := 0;
  v_end integer;
  v_last bigint;
  v_byte integer;
  v_shift integer;
  v_is_negative boolean;
begin
  while v_at < length(p_blocks) loop
    v_end := v_at + 2 + get_byte(p_blocks, v_at) * 256 + get_byte(p_blocks, v_at + 1);
    v_at := v_at + 2;
    v_last := 0;
    while v_at < v_end loop
      v_byte := get_byte(p_blocks, v_at);
      v_is_negative := v_byte & 1 = 1;
      v_last := v_last + ((v_byte & 126) >> 1);
      v_shift := 6;
      v_at := v_at + 1;
      while v_byte > 127 loop
        v_byte := get_byte(p_blocks, v_at);
        v_last := v_last + ((v_byte & 127)::bigint << v_shift);
        v_shift := v_shift + 7;
        v_at := v_at + 1;
      end loop;
      v_ids := v_ids || case when v_is_negative then ~v_last else v_last end;
    end loop;
  end loop;
  return v_ids;
end
$$;
comment on function two_tower.read_blocks(bytea) is 'Returns the ids that blocks of a cursor hold, block by block.';

create function two_tower.sign_blocks(p_user_id uuid, p_blocks bytea) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return substr(sha256(convert_to(
    (select hash_seed from two_tower.state) || ' cursor ' || coalesce(p_user_id::text, ''), 'utf8')
    || p_blocks), 1, 8);
end
$$;
comment on function two_tower.sign_blocks(uuid, bytea) is 'Returns a hash of a user and blocks of a cursor, keyed with state.hash_seed.';

create function two_tower.open_cursor(p_user_id uuid, p_cursor text) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_bytes bytea;
begin
  if p_cursor is null then
    return '';
  elsif length(p_cursor) between 14 and 4096 and length(p_cursor) % 4 <> 1
    and p_cursor collate "C" !~ '[^A-Za-z0-9_-]' then
    v_bytes := decode(translate(rpad(p_cursor, (length(p_cursor) + 3) / 4 * 4, '='), '-_', '+/'),
      'base64');
    if substr(v_bytes, 1, 2) = '\x0100'
      and substr(v_bytes, 3, 8) = two_tower.sign_blocks(p_user_id, substr(v_bytes, 11)) then
      return substr(v_bytes, 11);
    end if;
  end if;
  raise exception 'p_cursor is not a cursor of this user' using errcode = '22023',
    hint = 'Pass the cursor of the last row of the page before, as it came, or none to begin anew.';
end
$$;
comment on function two_tower.open_cursor(uuid, text) is 'Returns the blocks of a cursor. Raises 22023 for what was not written for this user, or was changed since.';

create function two_tower.write_cursor(p_user_id uuid, p_cursor text, p_post_ids bigint[])
returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_blocks bytea := '';
  v_known bytea := two_tower.open_cursor(p_user_id, p_cursor);
  v_at integer := 1;
  v_length integer;
begin
  for v_first in 1 .. cardinality(p_post_ids) by 100 loop
    v_known := two_tower.write_block(p_post_ids[v_first : v_first + 99]) || v_known;
  end loop;
  -- 3,072 bytes are 4,096 characters.
  while v_at < length(v_known) loop
    v_length := 2 + get_byte(v_known, v_at - 1) * 256 + get_byte(v_known, v_at);
    exit when 10 + length(v_blocks) + v_length > 3072;
    v_blocks := v_blocks || substr(v_known, v_at, v_length);
    v_at := v_at + v_length;
  end loop;
  return rtrim(translate(encode(
    '\x0100'::bytea || two_tower.sign_blocks(p_user_id, v_blocks) || v_blocks, 'base64'),
    E'+/\n', '-_'), '=');
end
$$;
comment on function two_tower.write_cursor(uuid, text, bigint[]) is 'Returns the cursor after a page of these posts, which was asked for with p_cursor.';
