"""Who may do what: the one table. What is not in it fails a test, until somebody says who may.

The service role is a back end: it may do everything here, except call what triggers call. Who is
not signed in may do nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """What a signed-in user may do with a table of `public`, and with whose rows.

    owner: the column that names whose row it is. reads: "own" rows or "all". inserts, updates:
    columns, of own rows. deletes: own rows.
    """

    owner: str
    reads: str
    inserts: str = ""
    updates: str = ""
    deletes: bool = False


def _words(names: str) -> set[str]:
    """Names of the private schema, qualified."""
    return {f"two_tower.{name}" for name in names.split()}


TABLES = {
    "public.engagement_events": Table(
        owner="user_id",
        reads="own",
        inserts="user_id post_id post_key post_source event_type dwell_ms client_event_id"
        " happened_at",
    ),
    "public.author_blocks": Table(owner="user_id", reads="own", deletes=True),
    "public.muted_terms": Table(
        owner="user_id", reads="own", inserts="user_id kind term", deletes=True
    ),
    "public.profiles": Table(
        owner="user_id",
        reads="all",
        inserts="user_id handle bio interests",
        updates="handle bio interests",
    ),
    "public.posts": Table(
        owner="author_id",
        reads="all",
        inserts="author_id content",
        updates="content deleted_at",
    ),
    "public.follows": Table(
        owner="follower_id", reads="own", inserts="follower_id followed_id", deletes=True
    ),
    "public.posts_page": Table(owner="author_id", reads="all"),
}

# Tables and views of the private schema, for the service role alone.
PRIVATE_TABLES = _words("""
    action_embeddings active_readers alert_kinds alerts audits author_embeddings author_steps
    base_embeddings blocks checkpoint_posts checkpoint_users checkpoints cold_start_counts
    cursors deferred_events deferred_steps due_posts engagements_in_force error_codes
    experiment_arms experiment_results experiments exploration_pool follows health
    installed_files jobs lessons likeness_embeddings listed_posts live_embeddings live_workers
    metric_targets metrics model_authors model_tensors model_weights most_moved_posts
    most_moved_users most_moving_users open_alerts overview partitioned_tables partitions
    personal_tables popular_candidates post_changes post_embeddings posts posts_never_shown
    profile_embeddings recent_posts refreshes requested_texts retention rollbacks schedule_counts
    schedules serving_builds
    serving_embeddings_0 serving_embeddings_1 serving_index setting_changes settings signals
    source_reports sources state studies study_posts told_interests training_examples
    training_pairs undo_users undos unlearned_events update_latencies user_embeddings
    user_post_signals user_posts users users_to_erase vanished_posts warmth warmth_evidence
    withheld_authors workers
""")

# Of these the service role may do less. Pages are written for attached tables: rows are changed in
# the table itself. listed_posts reads auth.users, which is the owner's.
PAGE_VIEWS = {"public.posts_page"}
OWNER_VIEWS = {"two_tower.listed_posts"}

SEQUENCES = {"two_tower.engagement_event_ids": "default of engagement_events.id"}

# Functions that signed-in users may call, and why. Those of `public` are the API.
CLIENT_FUNCTIONS = {
    "public.recommend": "a page",
    "public.recommended_posts": "a page, with the rows",
    "public.most_popular_posts": "a page, with the rows",
    "public.popular_posts": "a page",
    "public.similar_posts": "a page",
    "public.search_posts": "a page",
    "public.recent_from_followed": "a page",
    "public.explain_recommendation": "about the caller alone",
    "public.record_engagements": "the caller's own events",
    "public.embed_text": "the vector of a text of the caller",
    "public.reset_my_feed": "the caller's own learning",
    "public.more_from_author": "a page",
    "public.what_is_known_of_me": "about the caller alone",
    "two_tower.list_known": "core of what_is_known_of_me",
    "public.export_my_data": "about the caller alone",
    "two_tower.export_for": "core of export_my_data",
    "public.set_interests": "the caller's own interests",
    "two_tower.tell_interests": "core of set_interests",
    "public.trending_posts": "a page",
    "two_tower.reset_feed": "core of reset_my_feed",
    "two_tower.now": "default of created_at",
    "two_tower.is_operator": "called by now",
    "two_tower.session_role": "called by is_operator",
    "two_tower.require_user": "called by the wrappers",
    "two_tower.require_caller": "called by search_posts",
    "two_tower.request_text": "core of embed_text",
    "two_tower.page_for": "called by every page, as the caller",
    "two_tower.rank_for": "core of every page",
    "two_tower.turns_for": "called by page_for: whose turn it is on the caller's page",
    "two_tower.scan_limit": "called by page_for",
    "two_tower.find_excluded": "called by page_for",
    "two_tower.find_readable": "called by every page, as the caller",
    "two_tower.find_newest_readable": "called by page_for, as the caller",
    "two_tower.find_muted": "called by page_for, as the caller",
    "two_tower.muted_in_posts": "called by find_muted, as the caller",
    "two_tower.fold_text": "called by muted_in_posts",
    "two_tower.filter_for": "called by page_for",
    "two_tower.muted_for": "called by page_for: what the caller has muted",
    "two_tower.shown_before": "called by page_for: what the caller's cursor holds",
    "two_tower.cursor_after": "called by page_for",
    "two_tower.readable_posts": "called by find_readable, as the caller",
    "two_tower.newest_readable_posts": "called by find_newest_readable, as the caller",
    "two_tower.find_keys": "called by readable functions",
    "two_tower.find_ids": "called by readable functions",
    "two_tower.identify_post": "called by the wrappers",
    "two_tower.explain_readable": "called by explain_recommendation",
    "two_tower.explain_copy": "called by explain_readable: about the caller's page",
    "two_tower.explain_post": "core of explain_recommendation",
    "two_tower.find_refused": "called by the trigger check_readable",
    "two_tower.refuse_post": "called by the trigger check_readable",
    "two_tower.begin_batch": "core of record_engagements",
    "two_tower.store_events": "called by record_engagements, as the caller",
    "two_tower.store_each": "called by record_engagements, as the caller",
    "two_tower.read_event": "called by store_events",
    "two_tower.read_dwell": "called by read_event",
    "two_tower.is_about_the_event": "called by store_each",
    "two_tower.refuse_event": "called by store_each",
    "two_tower.canonical_key": "called by refuse_event",
}

# Functions of `public` for the service role alone: what a back end asks about a user, what
# operators do.
BACK_END_FUNCTIONS = {
    "public.recommend_for",
    "public.explain_for",
    "public.export_user_data",
    "public.remove_post",
    "public.restore_post",
    "public.read_metrics",
}

# What a worker, and who watches it, calls. tests/worker/test_worker_role.py holds that they call
# nothing else.
WORKER_FUNCTIONS = _words("""
    active_encoder active_version apply_study begin_study build_serving_index
    candidate_tower_pairs check_serving_index checkpoint claim_job complete_job encoder_to_try
    end_study event_types_to_train fail_job heartbeat_job held_out_from judge_candidate_tower
    judge_user_tower live_anchors posts_to_encode profiles_to_encode project_profiles
    random_posts_as_of read_author_embeddings read_base_embeddings read_health
    read_model_authors read_settings read_tensors read_version refuse_encoder reject_training
    release_job run_audit
    store_base_embeddings store_profile_embeddings store_text_embeddings store_user_encodings
    store_weights study_posts study_steps study_window switch_encoder texts_to_encode
    texts_to_fit tick user_histories users_to_encode users_to_judge users_to_train
""")

# Called by triggers and by the engine's owner: no role has a grant. Attaching writes those of a
# source, which are numbered.
OWNER_FUNCTIONS = (
    r"public\.add_profile_of_author",
    r"two_tower\.(scan|missing_in|texts_in|find_in|follow)_source_\d+",
)
