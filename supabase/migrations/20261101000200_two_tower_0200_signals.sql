-- What each event type means: a row for each.

create function two_tower.view_bit() returns integer
language sql immutable parallel safe return 1;
comment on function two_tower.view_bit() is
  'Returns the bit of a view in user_posts.signals: the only bit that is set without the user''s lock.';

create table two_tower.signals (
  event_type text primary key,
  strength real not null
    constraint strength_is_bounded check (strength between -3 and 3),
  label boolean,
  bit integer not null unique
    constraint bit_is_a_power_of_two check (bit > 0 and bit & (bit - 1) = 0),
  constraint a_view_has_the_bit_that_needs_no_lock
    check ((event_type = 'view') = (bit = two_tower.view_bit())),
  withdraws text references two_tower.signals (event_type),
  blocks_author boolean not null default false,
  description text not null,
  constraint a_labelled_signal_has_the_sign_of_its_label
    check (label is null or (label and strength >= 0) or (not label and strength <= 0)),
  constraint what_withdraws_teaches_nothing_itself
    check (withdraws is null or (strength = 0 and label is null))
);
comment on table two_tower.signals is 'What each event type means: its strength, and the training pair that it makes.';
comment on column two_tower.signals.strength is 'Factor of the learning step. Above 0 the post moves towards the user, below 0 away. 0 teaches nothing.';
comment on column two_tower.signals.label is 'True: makes a positive training pair, with negatives. False: makes one negative pair. Null: makes none.';
comment on column two_tower.signals.bit is 'The signal''s bit in user_posts.signals. Do not change it: stored rows would get another meaning.';
comment on column two_tower.signals.withdraws is 'The signal that this event takes back.';
comment on column two_tower.signals.blocks_author is 'Whether the event also writes a row of author_blocks.';
insert into two_tower.signals (event_type, strength, label, bit, withdraws, blocks_author,
  description) values
  ('view', 0, null, 1, null, false, 'An impression: the post was on screen.'),
  ('click', 0.5, null, 2, null, false, 'Weak positive: the post was opened.'),
  ('like', 1, true, 4, null, false, 'Strong positive.'),
  ('reply', 1.5, true, 8, null, false, 'Very strong positive.'),
  ('repost', 1, true, 16, null, false, 'Strong positive.'),
  ('dwell', 0.5, null, 32, null, false,
    'Positive above settings.long_dwell_ms. Below short_dwell_ms a skip. Between, a view.'),
  ('skip', -0.3, false, 64, null, false, 'Implicit negative: the user scrolled past quickly.'),
  ('hide', -0.5, false, 128, null, false, 'Weak negative: the post is not shown again.'),
  ('not_interested', -1, false, 256, null, false, 'Strong negative: the post is not shown again.'),
  ('block_author', -1.5, false, 512, null, true,
    'Very strong negative: no post of the author is shown.'),
  ('mute_author', -1.5, false, 1024, null, true,
    'Very strong negative: no post of the author is shown.');
insert into two_tower.signals (event_type, strength, bit, withdraws, description) values
  ('unlike', 0, 2048, 'like', 'Takes back a like: its training pair and its step.'),
  ('unrepost', 0, 4096, 'repost', 'Takes back a repost: its training pair and its step.'),
  ('unhide', 0, 8192, 'hide', 'Takes back a hide: its pair and its step. The post may return.'),
  ('undo_not_interested', 0, 16384, 'not_interested',
    'Takes back a not_interested: its pair and its step. The post may return.');

create trigger record_signal_change after update on two_tower.signals
  for each row when (old.* is distinct from new.*)
  execute function two_tower.record_setting_change();
