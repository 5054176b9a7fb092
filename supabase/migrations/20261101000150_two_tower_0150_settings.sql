-- Every constant of the engine is in settings, a column each, or in signals (the next file), a row
-- for each event type. A DBA changes them with an UPDATE. The next statement uses them.
-- setting_changes keeps who changed what, and when.

create table two_tower.settings (
  id boolean primary key default true constraint settings_is_one_row check (id),

  learning_rule text not null default 'contrastive'
    constraint learning_rule_is_known check (learning_rule in ('contrastive', 'literal')),
  contrastive_learning_rate real not null default 0.08
    constraint contrastive_learning_rate_is_small
      check (contrastive_learning_rate between 0 and 0.5),
  literal_learning_rate real not null default 0.01
    constraint literal_learning_rate_is_in_the_range_of_the_spec
      check (literal_learning_rate between 0.001 and 0.01),
  literal_maximum_alpha real not null default 0.1
    constraint literal_maximum_alpha_is_a_share
      check (literal_maximum_alpha > 0 and literal_maximum_alpha < 1),
  temperature real not null default 0.15
    constraint temperature_is_positive check (temperature between 0.01::real and 10),
  popularity_in_logits real not null default 0
    constraint popularity_in_logits_is_bounded check (popularity_in_logits between 0 and 2),
  history_decay real not null default 0.85
    constraint history_decay_is_a_share check (history_decay between 0.1::real and 1),
  history_length integer not null default 30
    constraint history_length_is_bounded check (history_length between 1 and 200),
  negative_strength_factor real not null default 0.3
    constraint negative_strength_factor_is_a_share check (negative_strength_factor between 0 and 1),
  interest_threshold real not null default 0.4
    constraint interest_threshold_is_a_cosine check (interest_threshold between 0 and 1),
  interest_decay real not null default 0.97
    constraint interest_decay_is_a_share check (interest_decay between 0.5::real and 0.999::real),
  interest_length integer not null default 80
    constraint interest_length_is_bounded check (interest_length between 1 and 200),

  negatives_per_positive integer not null default 8
    constraint negatives_per_positive_is_in_the_range_of_the_spec
      check (negatives_per_positive between 5 and 10),
  pushes_per_positive integer not null default 8
    constraint pushes_per_positive_is_bounded check (pushes_per_positive between 0 and 128),
  viewed_negative_window interval not null default '1 hour'
    constraint viewed_negative_window_is_short
      check (viewed_negative_window between '1 minute' and '1 day'),
  recent_posts_pool integer not null default 500
    constraint recent_posts_pool_is_bounded check (recent_posts_pool between 10 and 100000),
  account_share real not null default 0.02
    constraint account_share_is_a_share check (account_share between 0.001::real and 1),

  long_dwell_ms integer not null default 5000,
  short_dwell_ms integer not null default 2000,
  constraint dwell_thresholds_are_ordered
    check (0 < short_dwell_ms and short_dwell_ms <= long_dwell_ms),
  learned_events_per_minute integer not null default 60
    constraint learned_events_per_minute_is_positive check (learned_events_per_minute > 0),
  waiting_events_per_user integer not null default 1000
    constraint waiting_events_per_user_is_bounded
      check (waiting_events_per_user between 0 and 100000),

  movement_per_hour real not null default 2
    constraint movement_per_hour_is_positive check (movement_per_hour > 0),
  popularity_per_hour real not null default 30
    constraint popularity_per_hour_is_positive check (popularity_per_hour > 0),
  post_movement_limit real not null default 0.3
    constraint post_movement_limit_is_a_distance
      check (post_movement_limit > 0 and post_movement_limit <= 2),
  account_weight_days integer not null default 3
    constraint account_weight_days_are_bounded check (account_weight_days between 1 and 365),
  withdrawals_per_day integer not null default 3
    constraint withdrawals_per_day_are_bounded check (withdrawals_per_day between 1 and 1000),

  study_enabled boolean not null default true,
  study_share real not null default 0.25
    constraint study_share_is_a_share check (study_share > 0 and study_share <= 1),
  study_passes integer not null default 4
    constraint study_passes_are_bounded check (study_passes between 1 and 16),
  study_negatives integer not null default 64
    constraint study_negatives_are_bounded check (study_negatives between 1 and 512),
  study_rate real not null default 0.15
    constraint study_rate_is_a_share check (study_rate between 0 and 1),
  study_movement_limit real not null default 0.05
    constraint study_movement_limit_is_small check (study_movement_limit between 0 and 0.5),

  encoder text not null default 'all-MiniLM-L6-v2'
    constraint encoder_is_named check (length(encoder) between 1 and 500),

  client_event_retry_window interval not null default '7 days'
    constraint client_event_retry_window_is_bounded
      check (client_event_retry_window between '1 minute' and '31 days'),
  oldest_event_age interval not null default '30 years'
    constraint oldest_event_age_is_positive check (oldest_event_age > '0'),
  future_event_tolerance interval not null default '5 minutes'
    constraint future_event_tolerance_is_short
      check (future_event_tolerance between '0' and '1 day'),
  deleted_posts_kept_for interval not null default '30 days'
    constraint deleted_posts_are_kept_for_an_hour_or_more
      check (deleted_posts_kept_for >= '1 hour'),
  events_kept_for interval not null default '13 months'
    constraint events_are_kept_for_a_month_or_more check (events_kept_for >= '1 month'),
  training_examples_kept_for interval not null default '35 days'
    constraint training_examples_are_kept_for_a_week_or_more
      check (training_examples_kept_for >= '7 days'),

  candidate_tower_pairs integer not null default 1000
    constraint candidate_tower_pairs_are_bounded check (candidate_tower_pairs between 1 and 100000),
  candidate_tower_loss text not null default 'sampled_softmax'
    constraint candidate_tower_loss_is_known
      check (candidate_tower_loss in ('sampled_softmax', 'squared_error')),
  user_tower_users integer not null default 256
    constraint user_tower_users_are_bounded check (user_tower_users between 1 and 10000),
  user_tower_loss text not null default 'sampled_softmax'
    constraint user_tower_loss_is_known check (user_tower_loss in ('sampled_softmax', 'triplet')),
  active_user_window interval not null default '7 days'
    constraint active_user_window_is_a_day_or_more check (active_user_window >= '1 day'),
  examples_read integer not null default 20000
    constraint examples_read_are_bounded check (examples_read between 1000 and 1000000),

  gate_events integer not null default 500
    constraint gate_events_are_bounded check (gate_events between 1 and 100000),
  gate_minimum_events integer not null default 100
    constraint gate_minimum_events_is_positive check (gate_minimum_events > 0),
  gate_tolerance real not null default 0.0
    constraint gate_tolerance_is_small check (gate_tolerance between 0 and 0.1::real),
  gate_standard_errors real not null default 2.33
    constraint gate_standard_errors_are_bounded check (gate_standard_errors between 0 and 10),
  freeze_on_drift boolean not null default true,
  checkpoints_kept integer not null default 7
    constraint two_checkpoints_or_more_are_kept check (checkpoints_kept between 2 and 100),
  weight_versions_kept integer not null default 20
    constraint weight_versions_kept_is_positive check (weight_versions_kept >= 3),
  profile_weight real not null default 0.5
    constraint profile_weight_is_bounded check (profile_weight between 0 and 10),
  user_tower_weights real[] not null default '{0, 0.5, 1, 2, 4}'
    constraint user_tower_weights_are_bounded
      check (0 <= all (user_tower_weights) and 10 >= all (user_tower_weights)
        and cardinality(user_tower_weights) between 1 and 20),

  announced_readers integer not null default 100
    constraint announced_readers_are_bounded check (announced_readers between 0 and 10000),
  requested_text_length integer not null default 1000
    constraint requested_text_length_is_bounded check (requested_text_length between 1 and 4000),
  requested_texts_per_minute integer not null default 30
    constraint requested_texts_per_minute_is_positive check (requested_texts_per_minute > 0),
  requested_texts_kept_for interval not null default '1 hour'
    constraint requested_texts_are_kept_for_a_minute_or_more
      check (requested_texts_kept_for between '1 minute' and '7 days'),

  cold_until integer
    constraint cold_until_is_bounded check (cold_until between 0 and 1000),
  cold_until_prior integer not null default 3
    constraint cold_until_prior_is_bounded check (cold_until_prior between 0 and 20),
  cold_until_prior_trials integer not null default 100
    constraint a_reader_is_at_most_one_of_a_hundred_trials
      check (cold_until_prior_trials between 100 and 1000000),
  warmth_half_life interval not null default '30 days'
    constraint warmth_half_life_is_a_day_or_more check (warmth_half_life >= '1 day'),
  popularity_weight real not null default 0.15
    constraint popularity_weight_is_bounded check (popularity_weight between 0 and 10),
  followed_weight real not null default 0.2
    constraint followed_weight_is_bounded check (followed_weight between 0 and 10),
  recency_weight real not null default 0.2
    constraint recency_weight_is_bounded check (recency_weight between 0 and 10),
  recency_half_life interval not null default '3 days'
    constraint recency_half_life_is_an_hour_or_more check (recency_half_life >= '1 hour'),
  exploration_share real not null default 0.05
    constraint exploration_share_is_a_share check (exploration_share between 0 and 0.5),
  interest_share real not null default 0.8
    constraint interest_share_is_a_share check (interest_share between 0 and 1),
  author_share real not null default 0.05
    constraint author_share_is_a_share check (author_share between 0 and 1),
  followed_author_share real not null default 0.25
    constraint followed_author_share_is_a_share check (followed_author_share between 0 and 1),
  followed_share real not null default 0.25
    constraint followed_share_is_a_share check (followed_share between 0 and 1),
  followed_new_for interval not null default '2 days'
    constraint followed_new_for_is_an_hour_or_more check (followed_new_for >= '1 hour'),
  copy_similarity real default 0.95
    constraint copy_similarity_is_a_high_cosine check (copy_similarity between 0.5 and 1),
  seen_again_after interval default '30 days'
    constraint seen_again_after_is_an_hour_or_more check (seen_again_after >= '1 hour'),
  likeness_batch integer not null default 10
    constraint likeness_batch_is_positive check (likeness_batch > 0),
  told_share real not null default 0.7
    constraint told_share_is_a_share check (told_share between 0 and 1),
  told_until integer not null default 30
    constraint told_until_is_positive check (told_until > 0),
  about_similarity real not null default 0.3
    constraint about_similarity_is_a_cosine check (about_similarity between -1 and 1),
  trending_window interval not null default '7 days'
    constraint trending_looks_back_an_hour_to_90_days
      check (trending_window between '1 hour' and '90 days'),
  exact_scan_limit integer not null default 5000
    constraint exact_scan_limit_is_bounded check (exact_scan_limit between 0 and 1000000),
  ranks_by text not null default 'learned'
    constraint ranks_by_is_known check (ranks_by in ('learned', 'text')),
  over_fetch integer not null default 150
    constraint over_fetch_is_bounded check (over_fetch between 40 and 1000),
  ef_search integer not null default 100
    constraint ef_search_is_bounded check (ef_search between 40 and 1000),
  exploration_impressions integer not null default 20
    constraint exploration_impressions_is_bounded
      check (exploration_impressions between 0 and 100000),
  exploration_age interval not null default '14 days'
    constraint exploration_age_is_an_hour_or_more check (exploration_age >= '1 hour'),
  serving_drift_tolerance real not null default 0.01
    constraint serving_drift_tolerance_is_small
      check (serving_drift_tolerance between 0 and 0.2::real),
  serving_recall_tolerance real not null default 0.02
    constraint serving_recall_tolerance_is_small
      check (serving_recall_tolerance between 0 and 0.5),
  serving_rebuild_share real not null default 0.5
    constraint serving_rebuild_share_is_positive check (serving_rebuild_share > 0),
  serving_build_megabytes integer not null default 1024
    constraint serving_build_megabytes_is_bounded
      check (serving_build_megabytes between 16 and 1048576)
);
comment on table two_tower.settings is 'Every constant, in one row. Change it with an UPDATE: the next statement uses it. A dozen are for operators. A comment that begins with "Advanced." marks the others.';
comment on column two_tower.settings.learning_rule is 'Advanced. The rule of learning: contrastive (default), or literal (the specification to the letter, kept to compare with).';
comment on column two_tower.settings.contrastive_learning_rate is 'Advanced. Step of a post towards a user at strength 1, by the contrastive rule.';
comment on column two_tower.settings.literal_learning_rate is 'Advanced. Step of a post towards a user at strength 1, by the literal rule.';
comment on column two_tower.settings.literal_maximum_alpha is 'Advanced. Upper limit of alpha in the literal rule: alpha = least(this, 1 / (engagements + 1)).';
comment on column two_tower.settings.temperature is 'Advanced. Softmax temperature of the contrastive rule.';
comment on column two_tower.settings.popularity_in_logits is 'Advanced. What the log of a post''s share of all popularity weighs in the softmax of the contrastive rule. Posts that are shown and liked because they are popular need not learn it. 0: nothing.';
comment on column two_tower.settings.history_decay is 'Advanced. Factor by which each later engagement shrinks an engagement''s weight in the engaged sum.';
comment on column two_tower.settings.history_length is 'Advanced. A user is encoded from at most this number of last engagements.';
comment on column two_tower.settings.negative_strength_factor is 'Advanced. Factor of a negative strength in the contrastive rule, in the engaged sum and on the post.';
comment on column two_tower.settings.interest_threshold is 'Advanced. A positive belongs to the interest that it is nearest to if their cosine is at least this. Otherwise it begins a new one.';
comment on column two_tower.settings.interest_decay is 'Advanced. Factor by which each later positive shrinks the weight of a positive in its interest, and so of the interest.';
comment on column two_tower.settings.interest_length is 'Advanced. Interests are made of at most this number of last positives. With more, the row of a user grows beyond half a page, and each like rewrites an index entry.';
comment on column two_tower.settings.negatives_per_positive is 'Advanced. Negatives recorded with each positive training pair (5 to 10).';
comment on column two_tower.settings.pushes_per_positive is 'Advanced. Posts that a positive pushes away in the contrastive rule. They are drawn uniformly.';
comment on column two_tower.settings.viewed_negative_window is 'Advanced. A post that the user viewed at most this long before, and left alone, counts as a viewed negative.';
comment on column two_tower.settings.recent_posts_pool is 'Advanced. The other negatives are drawn from this number of newest posts (recent_posts).';
comment on column two_tower.settings.account_share is 'Advanced. The most that one account makes up of what all learn from, while there are others: of recent_posts, of the pairs that a tower is trained on and judged by, and of the engagements that start a training.';
comment on column two_tower.settings.long_dwell_ms is 'A longer dwell is a positive signal (milliseconds).';
comment on column two_tower.settings.short_dwell_ms is 'A shorter dwell counts as a skip (milliseconds).';
comment on column two_tower.settings.learned_events_per_minute is 'At most this number of events of one user is learned in a minute. Further ones wait, and are learned in the next minutes.';
comment on column two_tower.settings.waiting_events_per_user is 'At most this number of events of one user waits because its minute is full. Further events are only recorded.';
comment on column two_tower.settings.movement_per_hour is 'Advanced. The most that events move one post, and blocks one author, in an hour: the sum of their steps. A step is at most the learning rate times the strength. Reaching the limit opens an alert.';
comment on column two_tower.settings.post_movement_limit is 'Advanced. A post that events moved by more than this cosine distance from the newest checkpoint is held: further events do not move it until the next. 2: none is held.';
comment on column two_tower.settings.popularity_per_hour is 'The most that a post''s popularity grows in an hour, in likes of accounts of full weight. Raise it where honest posts get more.';
comment on column two_tower.settings.account_weight_days is 'An account weighs its active days divided by this, at most 1, in popularity and in what counts accounts. 1: new accounts weigh as much as others.';
comment on column two_tower.settings.withdrawals_per_day is 'Advanced. After this number of withdrawals of a signal in a day, the same user''s signal on the same post is not learned again that day.';
comment on column two_tower.settings.study_enabled is 'Whether a job repeats the newest positives (study). Drift that it makes switches it off.';
comment on column two_tower.settings.study_share is 'Advanced. The share of its time that a worker studies: after a study, the next one waits until this is kept. Then it is about more engagements.';
comment on column two_tower.settings.study_passes is 'Advanced. How many positives a study repeats for each new one.';
comment on column two_tower.settings.study_negatives is 'Advanced. Posts that a step of a study pushes away. They are drawn uniformly among posts that somebody engaged with.';
comment on column two_tower.settings.study_rate is 'Advanced. The learning rate of a study, as a share of that of an engagement.';
comment on column two_tower.settings.study_movement_limit is 'Advanced. The most that one study moves a post: the distance between its vectors of norm 1 before and after.';
comment on column two_tower.settings.encoder is 'The sentence-transformers model that reads texts: a name or a folder that all workers reach, of 384 dimensions. The default reads English. After a change, a worker fits the candidate tower to the new model, then all texts are encoded anew in the background (two_tower.active_encoder() is the model at work). One that does not fit opens an alert and changes nothing.';
comment on column two_tower.settings.client_event_retry_window is 'Advanced. A repeated client_event_id is recognised within this time.';
comment on column two_tower.settings.oldest_event_age is 'Advanced. Older events are refused. Only operators can insert history at all.';
comment on column two_tower.settings.future_event_tolerance is 'Advanced. Events further in the future are refused.';
comment on column two_tower.settings.deleted_posts_kept_for is 'Vectors of a post whose row is gone from the app''s table are deleted after this time. Until then a row that comes back finds what was learned.';
comment on column two_tower.settings.events_kept_for is 'Partitions of engagement_events and unlearned_events that are older are dropped.';
comment on column two_tower.settings.training_examples_kept_for is 'Advanced. Partitions of training_examples that are older are dropped.';
comment on column two_tower.settings.candidate_tower_pairs is 'Advanced. The candidate tower is trained on at most this number of newest positives, with their negatives.';
comment on column two_tower.settings.candidate_tower_loss is 'Advanced. Loss of the candidate tower: sampled_softmax (default), or squared_error (the specification''s).';
comment on column two_tower.settings.user_tower_users is 'Advanced. The user tower is trained on the histories of at most this number of users: those with the newest positives.';
comment on column two_tower.settings.user_tower_loss is 'Advanced. Loss of the user tower: sampled_softmax (default), or triplet (the specification''s).';
comment on column two_tower.settings.active_user_window is 'Advanced. The user tower encodes the users who engaged within this time.';
comment on column two_tower.settings.examples_read is 'Advanced. At most this number of newest training examples is read for a training or a gate. They say where posts stood, and which users to train on.';
comment on column two_tower.settings.gate_events is 'Advanced. At most this number of newest positives is held out from training, for the gate.';
comment on column two_tower.settings.gate_standard_errors is 'Advanced. The lower bound of the gate lies this number of standard errors below the mean. One-sided, 1.645 is 95 % sure, 2.33 is 99 %. Versions are judged every hour, so chance gets many tries.';
comment on column two_tower.settings.gate_minimum_events is 'Advanced. The gate rejects a version that it could judge on fewer held-out positives.';
comment on column two_tower.settings.gate_tolerance is 'Advanced. How far the lower bound of the paired difference may lie below zero.';
comment on column two_tower.settings.freeze_on_drift is 'Whether learning freezes by itself when drift is above its alert threshold (metric_targets).';
comment on column two_tower.settings.checkpoints_kept is 'At most this number of newest checkpoints is kept, and the newest good one besides.';
comment on column two_tower.settings.weight_versions_kept is 'Advanced. The tensors of this number of newest versions of a tower are kept. The metrics of all versions are.';
comment on column two_tower.settings.profile_weight is 'Advanced. Weight of a prior that comes from the profile.';
comment on column two_tower.settings.user_tower_weights is 'Advanced. Weights of a prior that comes from the user tower. The gate chooses one for each class of users. Zero is always one of them.';
comment on column two_tower.settings.announced_readers is 'At most this number of active readers is told of new posts in a turn of tick(), where Supabase Realtime exists. 0 tells nobody.';
comment on column two_tower.settings.requested_text_length is 'The longest text that embed_text() takes, in characters.';
comment on column two_tower.settings.requested_texts_per_minute is 'At most this number of new texts of one user is taken by embed_text() in a minute.';
comment on column two_tower.settings.requested_texts_kept_for is 'What embed_text() made of a text is deleted after this time.';
comment on column two_tower.settings.cold_until is 'Engagements over which a user''s page goes from popular to personal. Null: it follows from what new readers engage with (the view warmth).';
comment on column two_tower.settings.cold_until_prior is 'Advanced. What cold_until is taken for while it is null and little is known.';
comment on column two_tower.settings.cold_until_prior_trials is 'Advanced. What cold_until_prior is worth, in positives of readers with so many engagements. A reader counts once, and so for at most 1 %.';
comment on column two_tower.settings.warmth_half_life is 'Advanced. In what time evidence of how well warmth predicts halves.';
comment on column two_tower.settings.popularity_weight is 'Weight of popularity (0 to 1) in the score for a warm user, beside the cosine.';
comment on column two_tower.settings.followed_weight is 'What a post of a followed author gains in score.';
comment on column two_tower.settings.recency_weight is 'Weight of freshness (0 to 1) in the score.';
comment on column two_tower.settings.recency_half_life is 'Advanced. Half-life of the freshness of a post.';
comment on column two_tower.settings.exploration_share is 'Share of a page that goes to new posts that few have seen: half of it to those nearest to the reader, half by chance.';
comment on column two_tower.settings.interest_share is 'Share of a page that interests are owed: each has its weight of it, and the rest goes by the score alone. 0 for pages by one vector.';
comment on column two_tower.settings.author_share is 'At most this share of a page (but one post) is of one author, while posts of others are left. 1 for no bound, as for a catalogue whose authors are brands.';
comment on column two_tower.settings.followed_author_share is 'The same, of an author whom the reader follows.';
comment on column two_tower.settings.exploration_impressions is 'Advanced. A new post is explored until this number of readers saw it, or somebody engaged with it.';
comment on column two_tower.settings.exploration_age is 'Advanced. An older post is not new, and is not explored. Imported posts are as old as they were.';
comment on column two_tower.settings.followed_share is 'New posts of followed authors stand first on a page, up to this share of it. 0 ranks them with all others.';
comment on column two_tower.settings.followed_new_for is 'Advanced. How long a post of a followed author is new.';
comment on column two_tower.settings.copy_similarity is 'A post whose text is as near as this to that of a better post on the page, or of one that the reader engaged with lately, is a copy: it comes behind all others. The cosine of their base embeddings; 1 for the same text alone. Null: nothing is a copy.';
comment on column two_tower.settings.seen_again_after is 'A post that a reader viewed this long ago, and did no more with, comes back where nothing else is left: those that were not seen for longest first. Null: never.';
comment on column two_tower.settings.likeness_batch is 'Advanced. similar_posts() and search_posts() show what engagements did to a post once there are this many more. 1 shows each reader''s.';
comment on column two_tower.settings.told_share is 'Share of a new reader''s page that goes to what the reader told: interests (set_interests()) and the profile.';
comment on column two_tower.settings.told_until is 'Engagements over which that share falls to nothing.';
comment on column two_tower.settings.about_similarity is 'Advanced. A post with at least this cosine to what a reader told, or to a post that the reader engaged with, is about the same. One-line texts of another subject are so near in 1 of 60 cases.';
comment on column two_tower.settings.trending_window is 'trending_posts() shows posts of this time alone.';
comment on column two_tower.settings.exact_scan_limit is 'Advanced. With at most this number of posts, all are scanned. With more, the serving index proposes candidates.';
comment on column two_tower.settings.ranks_by is 'learned: pages by the live embeddings. text: pages by the encoder alone, of the newest 20,000 posts, and popular ones after them: what an experiment compares learning with (compare_with_static()).';
comment on column two_tower.settings.over_fetch is 'Advanced. The serving index proposes at least this number of unseen posts, to be scored by their live embeddings. Three times the page, where that is more.';
comment on column two_tower.settings.ef_search is 'Advanced. Breadth of the search in the serving index (hnsw.ef_search) for each interest of the reader. A wider search finds more, and takes longer.';
comment on column two_tower.settings.serving_drift_tolerance is 'Advanced. A served copy is refreshed when its cosine distance from the live embedding is above this.';
comment on column two_tower.settings.serving_recall_tolerance is 'Advanced. The serving index is rebuilt when its sampled recall has fallen by more than this.';
comment on column two_tower.settings.serving_rebuild_share is 'Advanced. The serving index is rebuilt when its copies written since the build, as a share of the posts, are above this.';
comment on column two_tower.settings.serving_build_megabytes is 'Advanced. The most memory that a build of the serving index takes. A build needs about 1 MB per 1,000 posts, and is slow with less.';
insert into two_tower.settings default values;

create function two_tower.read_settings() returns two_tower.settings
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.settings;
$$;
comment on function two_tower.read_settings() is
  'Returns the settings. Definer: workers have no grant on tables.';

create table two_tower.setting_changes (
  id bigint generated always as identity primary key,
  changed_at timestamptz not null default two_tower.now(),
  changed_by text not null default two_tower.session_role(),
  table_name text not null,
  row_key text,
  old_values jsonb not null,
  new_values jsonb not null
);
comment on table two_tower.setting_changes is 'History of settings and signals: who changed what, and when.';
comment on column two_tower.setting_changes.changed_by is 'The role that made the change.';
comment on column two_tower.setting_changes.table_name is 'settings or signals.';
comment on column two_tower.setting_changes.row_key is 'The event type whose row of signals it was. Null for settings, which are one row.';
comment on column two_tower.setting_changes.old_values is 'The columns that changed, as they were before.';
comment on column two_tower.setting_changes.new_values is 'The same columns after the change.';

create function two_tower.record_setting_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.setting_changes (table_name, row_key, old_values, new_values)
  select tg_table_name, to_jsonb(new) ->> 'event_type', jsonb_object_agg(o.key, o.value),
    jsonb_object_agg(o.key, n.value)
  from jsonb_each(to_jsonb(old)) o join jsonb_each(to_jsonb(new)) n using (key)
  where o.value <> n.value;
  return null;
end
$$;
comment on function two_tower.record_setting_change() is
  'Records a change of settings or signals. Definer: whoever may change a setting need not be able to write, or rewrite, its history.';

-- Without its row no engagement could be stored.
create function two_tower.keep_row() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'the row of two_tower.settings is changed, not deleted'
    using errcode = '55000', hint = 'Use an UPDATE, or two-tower uninstall.';
end
$$;
comment on function two_tower.keep_row() is 'Raises 55000: nothing works without the settings.';
create trigger keep_row before delete or truncate on two_tower.settings
  for each statement execute function two_tower.keep_row();

create trigger record_setting_change after update on two_tower.settings
  for each row when (old.* is distinct from new.*)
  execute function two_tower.record_setting_change();
