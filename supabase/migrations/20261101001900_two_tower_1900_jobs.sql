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
  claimed_at timestamptz,
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
comment on column two_tower.jobs.claimed_at is 'When that worker claimed it.';
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
  role text not null default two_tower.session_role(),
  version text,
  started_at timestamptz not null default two_tower.now(),
  seen_at timestamptz not null default two_tower.now()
);
comment on table two_tower.workers is 'Workers, as they were last seen: claiming a job, which an idle one does twice a second, or extending a lease. What was not seen for a day is forgotten, but for the one that was seen last.';
comment on column two_tower.workers.name is 'As the worker calls itself: drawn when it starts, and no name of a machine. Its first line of log has it.';
comment on column two_tower.workers.role is 'The role that it logged in as.';
comment on column two_tower.workers.version is 'The release that it runs. Null for one that did not say.';
comment on column two_tower.workers.started_at is 'When it was first seen.';
comment on column two_tower.workers.seen_at is 'Written at most every five seconds.';

create function two_tower.note_worker(p_name text, p_version text default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from two_tower.workers w
    where w.name = p_name and w.seen_at > two_tower.now() - interval '5 seconds') then
    return;
  end if;
  insert into two_tower.workers as w (name, version) values (p_name, p_version)
  on conflict (name) do update set
    seen_at = excluded.seen_at, version = coalesce(excluded.version, w.version);
end
$$;
comment on function two_tower.note_worker(text, text) is 'Notes that a worker lives, and which release it runs.';

create view two_tower.live_workers with (security_invoker = true) as
select w.name, w.role, w.version, w.started_at, w.seen_at, j.kind, j.claimed_at, j.attempts
from two_tower.workers as w
left join two_tower.jobs as j
  on j.state = 'running' and j.worker = w.name and j.lease_until > two_tower.now()
where w.seen_at > two_tower.now() - interval '30 seconds' or j.id is not null;
comment on view two_tower.live_workers is 'Who works on what since when: a row for each job that a worker has, and one for a worker without. A worker lives that was seen within 30 seconds, or has a job whose lease goes on.';
comment on column two_tower.live_workers.kind is 'Of the job. Null for a worker that waits for one.';

create function two_tower.has_worker() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from two_tower.live_workers);
$$;
comment on function two_tower.has_worker() is 'Returns whether a worker lives: see live_workers.';

create function two_tower.seconds_without_worker() returns double precision
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when two_tower.has_worker() then 0
    else extract(epoch from two_tower.now() - max(w.seen_at))::double precision end
  from two_tower.workers w;
$$;
comment on function two_tower.seconds_without_worker() is 'Returns for how long no worker lives: 0 while one does, null where none ever did.';

create function two_tower.claim_job(
  p_worker text, p_kinds text[] default null, p_lease interval default '1 minute',
  p_version text default null
) returns setof two_tower.jobs
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if p_worker is null or p_lease is null or p_lease <= '0' then
    raise exception 'a claim needs the name of a worker and a lease above zero'
      using errcode = '22023', hint = 'Call claim_job(worker, kinds, lease). kinds null: any.';
  end if;
  perform two_tower.note_worker(p_worker, p_version);
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
    state = 'running', worker = p_worker, claimed_at = two_tower.now(),
      lease_until = two_tower.now() + p_lease, attempts = j.attempts + 1
  from next where j.id = next.id
  returning j.*;
end
$$;
comment on function two_tower.claim_job(text, text[], interval, text) is
  'Claims the job that has been due longest, or whose lease ended. Returns no row when there is none. Skips jobs that others are claiming, and pending jobs of a kind and subject of which one is running. Makes at most ten jobs dead whose lease ended on their last attempt. p_version: the release that the worker runs. Raises 22023 without a worker or a lease. Definer: workers have no grant on tables.';

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

create function two_tower.release_job(p_job_id bigint, p_worker text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_job two_tower.jobs := two_tower.lock_own_job(p_job_id, p_worker);
begin
  update two_tower.jobs set
    state = 'pending', lease_until = null, worker = null, claimed_at = null,
    attempts = v_job.attempts - 1, run_at = two_tower.now()
  where id = v_job.id;
exception when unique_violation then
  update two_tower.jobs set state = 'done', finished_at = two_tower.now(), lease_until = null,
    result = '{"released": "another one is pending"}'
  where id = v_job.id;
end
$$;
comment on function two_tower.release_job(bigint, text) is 'Gives a job back that a worker leaves because it is told to stop: the next worker does it, and it was no attempt. Raises TT003 when the worker has lost it. Definer: workers have no grant on tables.';

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
  delete from two_tower.workers w
  where w.seen_at < two_tower.now() - interval '1 day'
    and w.seen_at < (select max(l.seen_at) from two_tower.workers l);
  return v_pruned;
end
$$;
comment on function two_tower.prune_jobs(integer) is 'Deletes at most p_limit jobs that were done more than a day ago or died more than 30 days ago, and workers that were not seen for a day, but for the last. Returns how many jobs.';
