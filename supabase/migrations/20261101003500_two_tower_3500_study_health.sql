-- Whether study keeps up, and what it does to the embeddings.

insert into two_tower.metric_targets (name, unit, target_low, target_high, alert_low, alert_high,
  description, advice) values
  ('study_lag', 'positives', null, 8000, null, 32000,
    'Positives that came since the last one that a study repeated, counted up to 50,000.',
    'Studies do not keep up: see that a worker runs, or raise settings.study_share.'),
  ('study_passes', 'ratio', 1, null, null, null,
    'How many positives the last study repeated for each new one.', null),
  ('study_movement', 'cosine distance per day', null, null, null, null,
    'What studies since the newest checkpoint moved posts by, on average. A part of the drift.',
    null);

-- Drift of study is not the work of a crowd: it ends with study, and likes go on teaching.
create function two_tower.stop_study_on_drift(p_alert two_tower.alerts) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_drift double precision := (p_alert.details ->> 'value')::double precision;
  v_study double precision := coalesce(
    (select m.value from two_tower.measure_study() m where m.name = 'study_movement'), 0);
begin
  if not p_alert.details ? 'stopped_study' then
    if not v_study > v_drift / 2 then
      return false;
    end if;
    update two_tower.settings set study_enabled = false where study_enabled;
    update two_tower.alerts set details = details || '{"stopped_study": true}'
    where id = p_alert.id;
  end if;
  return v_drift - v_study <= (
    select t.alert_high from two_tower.metric_targets t where t.name = p_alert.subject);
end
$$;
comment on function two_tower.stop_study_on_drift(two_tower.alerts) is
  'Switches study off (settings.study_enabled) when it made over half of the drift of an alert. Returns whether the rest of the drift is in its range: then learning need not freeze.';
