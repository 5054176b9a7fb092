-- What an operator should look at. Any file may open an alert.

create table two_tower.alerts (
  id bigint generated always as identity primary key,
  kind text not null,
  subject text not null default '',
  message text not null,
  details jsonb not null default '{}',
  occurrences bigint not null default 1,
  opened_at timestamptz not null default two_tower.now(),
  last_seen_at timestamptz not null default two_tower.now(),
  announced_at timestamptz,
  closed_at timestamptz
);
comment on table two_tower.alerts is 'What an operator should look at. At most one alert is open per kind and subject. Close it by setting closed_at: the next occurrence opens another.';
comment on column two_tower.alerts.kind is 'What happened: alert_kinds.';
comment on column two_tower.alerts.subject is 'What the alert is about, within its kind: a post, a metric, a version, a function, an attached table.';
comment on column two_tower.alerts.details is 'Values of the occurrences, merged.';
comment on column two_tower.alerts.occurrences is 'How often the alert was raised since it was opened.';
comment on column two_tower.alerts.announced_at is 'When operators were told by Realtime. Null while they were not.';
comment on column two_tower.alerts.closed_at is 'Null while the alert is open.';
create unique index one_open_alert_per_kind_and_subject on two_tower.alerts (kind, subject)
  where closed_at is null;

create function two_tower.open_alert(p_kind text, p_subject text, p_message text,
  p_details jsonb default '{}')
returns void language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.alerts as a (kind, subject, message, details)
  values (p_kind, p_subject, p_message, p_details)
  on conflict (kind, subject) where closed_at is null do update set
    message = excluded.message, details = a.details || excluded.details,
    occurrences = a.occurrences + 1,
    last_seen_at = excluded.last_seen_at;
$$;
comment on function two_tower.open_alert(text, text, text, jsonb) is 'Opens an alert or, where one of this kind and subject is open, counts one more occurrence of it.';

create function two_tower.close_alert(p_kind text, p_subject text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update two_tower.alerts set closed_at = two_tower.now()
  where kind = p_kind and subject = p_subject and closed_at is null;
$$;
comment on function two_tower.close_alert(text, text) is 'Closes the alert of a kind and subject, if one is open.';

-- What many call, or calls many, must not end with one of them. A cancelled statement is no failure
-- of the function: it goes up to whoever cancelled it.
create function two_tower.try_call(p_function text, p_limit integer default null,
  out answer text, out has_failed boolean)
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('select two_tower.%I(%s)::text', p_function, p_limit) into answer;
  perform two_tower.close_alert('call_failed', p_function);
  has_failed := false;
exception when others then
  perform two_tower.open_alert('call_failed', p_function, sqlerrm,
    jsonb_build_object('sqlstate', sqlstate));
  has_failed := true;
end
$$;
comment on function two_tower.try_call(text, integer) is
  'Calls a function of this schema, with p_limit as its argument if one is given, and returns its answer. One that fails changes nothing and opens an alert, which its next success closes.';

create table two_tower.alert_kinds (
  kind text primary key,
  advice text not null,
  page text not null
);
comment on table two_tower.alert_kinds is 'What to do about each kind of alert.';
comment on column two_tower.alert_kinds.kind is 'alerts.kind.';
comment on column two_tower.alert_kinds.page is 'Where the documents of the release say more.';
insert into two_tower.alert_kinds (kind, advice, page) values
  ('metric_out_of_range', 'See two_tower.health.advice.', 'docs/operations.md#alerts'),
  ('post_moved_in_concert', 'Look at two_tower.most_moving_users; take back what they taught.',
    'docs/operations.md#alerts'),
  ('post_held', 'Look at who moved it: two_tower.lessons. The next checkpoint frees it.',
    'docs/operations.md#alerts'),
  ('author_blocked_in_concert', 'Look at who blocked the author, and when: two_tower.blocks.',
    'docs/operations.md#alerts'),
  ('version_forced', 'Close it once the version has proved itself, or roll back.',
    'docs/operations.md#towers'),
  ('call_failed', 'Mend what the message names. The next success closes the alert.',
    'docs/operations.md#alerts'),
  ('encoder_refused', 'Set another settings.encoder, then this one again.',
    'docs/operations.md#another-encoder'),
  ('source_broken', 'Read the message: wait for the walk, or attach the table again.',
    'docs/operations.md#what-a-source-says-of-itself'),
  ('source_lost_posts', 'Restore the table, or say that the rows are meant to be gone.',
    'docs/operations.md#what-a-source-says-of-itself'),
  ('page_is_old', 'Drop the object that depends on the page, attach the table again.',
    'docs/operations.md#what-a-source-says-of-itself');
