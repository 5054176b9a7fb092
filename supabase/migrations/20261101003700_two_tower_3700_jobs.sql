-- Work that is done later. A job is a row. A worker claims it with a lease, extends the lease while
-- it works, and completes or fails it. The lease of a worker that dies ends, and another worker
-- takes the job. A job may run twice, so what it stores is idempotent.

create table two_tower.jobs (
  id bigint generated always as identity primary key,
  kind text not null,
  subject text not null default '',
  payload jsonb not null default '{}',
  state text not null default 'pending'
    constraint state_of_a_job_is_known check (state in ('pending', 'running', 'done', 'dead')),
  attempts integer not null default 0,
  max_attempts integer not null default 5 constraint a_job_is_tried_once_or_more
    check (max_attempts > 0),
  run_at timestamptz not null default two_tower.now(),
  worker text,
  lease_until timestamptz,
  result jsonb,
  last_error text,
  created_at timestamptz not null default two_tower.now(),
  finished_at timestamptz,
  constraint a_running_job_has_a_lease
    check (state <> 'running' or (worker is not null and lease_until is not null)),
  constraint a_finished_job_says_when
    check ((state in ('done', 'dead')) = (finished_at is not null))
);
comment on table two_tower.jobs is 'Queue of background work. A dead job was tried max_attempts times, or failed while another one of its kind and subject was pending. last_error says why.';
comment on column two_tower.jobs.subject is 'What the job is about, within its kind. At most one job per kind and subject is pending, and at most one is running.';
comment on column two_tower.jobs.state is 'pending, running, done or dead.';
comment on column two_tower.jobs.attempts is 'How often the job was claimed.';
comment on column two_tower.jobs.run_at is 'The job is not claimed before.';
comment on column two_tower.jobs.worker is 'The worker that has the job, or had it last.';
comment on column two_tower.jobs.lease_until is 'Until then the job is its worker''s. Later any worker may take it.';
comment on column two_tower.jobs.result is 'What the worker returned.';
comment on column two_tower.jobs.last_error is 'What the last failure said.';
comment on column two_tower.jobs.finished_at is 'When the job became done or dead.';
create unique index one_pending_job_per_kind_and_subject on two_tower.jobs (kind, subject)
  where state = 'pending';
create unique index one_running_job_per_kind_and_subject on two_tower.jobs (kind, subject)
  where state = 'running';
create index jobs_to_run_idx on two_tower.jobs (run_at) where state = 'pending';
create index jobs_running_idx on two_tower.jobs (lease_until) where state = 'running';
create index jobs_finished_idx on two_tower.jobs (finished_at) where state in ('done', 'dead');

create function two_tower.enqueue_job(p_kind text, p_subject text default '',
  p_payload jsonb default '{}')
returns bigint language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.jobs (kind, subject, payload) values (p_kind, p_subject, p_payload)
  on conflict (kind, subject) where state = 'pending' do nothing
  returning id;
$$;
comment on function two_tower.enqueue_job(text, text, jsonb) is
  'Adds a job, and returns its id. Returns null where one of this kind and subject is pending already. Workers poll: a notification does not reach through a transaction pooler.';

create table two_tower.workers (
  name text primary key,
  started_at timestamptz not null default two_tower.now(),
  seen_at timestamptz not null default two_tower.now()
);
comment on table two_tower.workers is 'Workers, as they were last seen: claiming a job, which an idle one does twice a second, or extending a lease.';
comment on column two_tower.workers.name is 'Host and process, as the worker calls itself.';
comment on column two_tower.workers.started_at is 'When it was first seen, or seen again after ten minutes.';
comment on column two_tower.workers.seen_at is 'Written at most every five seconds.';

create function two_tower.note_worker(p_name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from two_tower.workers w
    where w.name = p_name and w.seen_at > two_tower.now() - interval '5 seconds') then
    return;
  end if;
  insert into two_tower.workers as w (name) values (p_name)
  on conflict (name) do update set
    seen_at = excluded.seen_at,
    started_at = case when w.seen_at < excluded.seen_at - interval '10 minutes'
      then excluded.started_at else w.started_at end;
end
$$;
comment on function two_tower.note_worker(text) is 'Notes that a worker lives.';

create function two_tower.has_worker() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from two_tower.workers w
      where w.seen_at > two_tower.now() - interval '30 seconds')
    or exists (select from two_tower.jobs j
      where j.state = 'running' and j.lease_until > two_tower.now());
$$;
comment on function two_tower.has_worker() is 'Returns whether a worker lives: one was seen within 30 seconds, or has a job whose lease goes on.';

create function two_tower.claim_job(
  p_worker text, p_kinds text[] default null, p_lease interval default '1 minute'
) returns setof two_tower.jobs
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if p_worker is null or p_lease is null or p_lease <= '0' then
    raise exception 'a claim needs the name of a worker and a lease above zero'
      using errcode = '22023', hint = 'Call claim_job(worker, kinds, lease). kinds null: any.';
  end if;
  perform two_tower.note_worker(p_worker);
  update two_tower.jobs j set
    state = 'dead', finished_at = two_tower.now(),
      last_error = coalesce(j.last_error || E'\n', '') || 'lease ended'
  from (
    select id from two_tower.jobs
    where state = 'running' and lease_until < two_tower.now() and attempts >= max_attempts
    order by id limit 10 for update skip locked
  ) expired where j.id = expired.id;

  return query
  with next as (
    select q.id from two_tower.jobs q
    where (p_kinds is null or q.kind = any (p_kinds))
      and ((q.state = 'pending' and q.run_at <= two_tower.now()
          and not exists (select from two_tower.jobs r
            where r.kind = q.kind and r.subject = q.subject and r.state = 'running'))
        or (q.state = 'running' and q.lease_until < two_tower.now()))
    order by q.run_at, q.id limit 1 for update skip locked
  )
  update two_tower.jobs j set
    state = 'running', worker = p_worker, lease_until = two_tower.now() + p_lease,
      attempts = j.attempts + 1
  from next where j.id = next.id
  returning j.*;
end
$$;
comment on function two_tower.claim_job(text, text[], interval) is
  'Claims the job that has been due longest, or whose lease ended. Returns no row when there is none. Skips jobs that others are claiming, and pending jobs of a kind and subject of which one is running. Makes at most ten jobs dead whose lease ended on their last attempt. Raises 22023 without a worker or a lease. Definer: workers have no grant on tables.';

create function two_tower.lock_own_job(p_job_id bigint, p_worker text) returns two_tower.jobs
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_job two_tower.jobs;
begin
  select * into v_job from two_tower.jobs
    where id = p_job_id and state = 'running' and worker = p_worker
  for no key update;
  if not found then
    raise exception 'job % is not leased by worker %', p_job_id, p_worker using errcode = 'TT003',
      hint = 'Drop this work. The lease ended, and another worker may have the job.';
  end if;
  return v_job;
end
$$;
comment on function two_tower.lock_own_job(bigint, text) is 'Locks the job, and returns it, if this worker still has it. Raises TT003 otherwise.';

create function two_tower.heartbeat_job(p_job_id bigint, p_worker text,
  p_lease interval default '1 minute')
returns timestamptz language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_job two_tower.jobs := two_tower.lock_own_job(p_job_id, p_worker);
begin
  perform two_tower.note_worker(p_worker);
  update two_tower.jobs set lease_until = two_tower.now() + p_lease where id = v_job.id
  returning lease_until into v_job.lease_until;
  return v_job.lease_until;
end
$$;
comment on function two_tower.heartbeat_job(bigint, text, interval) is 'Extends the lease, and returns its new end. Raises TT003 when the worker has lost the job. Definer: workers have no grant on tables.';

create function two_tower.complete_job(p_job_id bigint, p_worker text, p_result jsonb default '{}')
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_job two_tower.jobs := two_tower.lock_own_job(p_job_id, p_worker);
begin
  update two_tower.jobs set state = 'done', finished_at = two_tower.now(), result = p_result,
    lease_until = null
  where id = v_job.id;
end
$$;
comment on function two_tower.complete_job(bigint, text, jsonb) is 'Makes the job done. Raises TT003 when the worker has lost it. Definer: workers have no grant on tables.';

create function two_tower.fail_job(p_job_id bigint, p_worker text, p_error text) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_job two_tower.jobs := two_tower.lock_own_job(p_job_id, p_worker);
  v_state text := 'pending';
begin
  if v_job.attempts >= v_job.max_attempts or exists (
    select from two_tower.jobs
      where kind = v_job.kind and subject = v_job.subject and state = 'pending'
  ) then
    v_state := 'dead';
  end if;
  update two_tower.jobs set
    state = v_state, last_error = p_error, lease_until = null, worker = null,
    run_at = two_tower.now() + least(interval '1 hour', interval '2 seconds' * 2 ^ v_job.attempts),
    finished_at = case when v_state = 'dead' then two_tower.now() end
  where id = v_job.id;
  return v_state;
exception when unique_violation then
  update two_tower.jobs set state = 'dead', last_error = p_error, lease_until = null, worker = null,
    finished_at = two_tower.now()
  where id = v_job.id;
  return 'dead';
end
$$;
comment on function two_tower.fail_job(bigint, text, text) is
  'Records that the job failed, and returns its state. The job is tried again after 4, 8, 16 ... seconds, at most an hour. It is dead after max_attempts, or when another one of its kind and subject is pending. Raises TT003 when the worker has lost it. Definer: workers have no grant on tables.';

-- A busy app makes two jobs a second that encode posts. Failures are kept longer: they are read.
create function two_tower.prune_jobs(p_limit integer default 2000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_pruned integer;
begin
  delete from two_tower.jobs where id = any (array(
    select id from two_tower.jobs
    where state in ('done', 'dead') and finished_at < two_tower.now() - interval '1 day'
      and (state = 'done' or finished_at < two_tower.now() - interval '30 days')
    order by finished_at limit p_limit for update skip locked));
  get diagnostics v_pruned = row_count;
  delete from two_tower.workers w where w.seen_at < two_tower.now() - interval '30 days';
  return v_pruned;
end
$$;
comment on function two_tower.prune_jobs(integer) is 'Deletes at most p_limit jobs that were done more than a day ago or died more than 30 days ago, and workers that were not seen for 30 days. Returns how many jobs.';
