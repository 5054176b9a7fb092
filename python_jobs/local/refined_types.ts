
// From here on: what the catalogue cannot say of the engine's functions and tables.

/** The types of events, as two_tower.signals has them. */
export type EventType = never;

/** An event as record_engagements() takes it. It names its post by post_id, or by post_key. */
export type SentEvent = {
  post_id?: number;
  post_key?: string;
  post_source?: string;
  event_type: EventType;
  dwell_ms?: number;
  client_event_id?: string;
  /** When it happened, for what is sent late. */
  happened_at?: string;
};

type Schema = Generated["public"];
type Override<Whole, Part> = Omit<Whole, keyof Part> & Part;
type Columns<Row, Known> = { [Name in keyof Row]: Name extends keyof Known ? Known[Name] : Row[Name] };

/** An event names its post by key, or by id: neither is required. */
type Event = Override<
  Schema["Tables"]["engagement_events"],
  {
    Row: Override<Schema["Tables"]["engagement_events"]["Row"], { event_type: EventType }>;
    Insert: Override<
      Schema["Tables"]["engagement_events"]["Insert"],
      { event_type: EventType; post_id?: number }
    >;
  }
>;

/** Pages: a post may have no known author, and most readers are in no arm of an experiment. */
type Page = { author_id: string | null; arm: string | null; cursor: string | null };
type Explanation = {
  place: number | null;
  personal: number | null;
  popular: number | null;
  fresh: number | null;
  followed: number | null;
  because: Json | null;
};
type KnownColumns = {
  recommend: Page;
  recommend_for: Page;
  similar_posts: Page;
  popular_posts: Page;
  search_posts: Page;
  recent_from_followed: Page;
  explain_recommendation: Explanation;
  explain_for: Explanation;
  embed_text: {
    status: "ready" | "waiting" | "no_worker" | "unreadable";
    base_embedding: number[] | null;
    embedding: number[] | null;
    retry_after: number | null;
  };
  read_metrics: {
    value: number | null;
    target_low: number | null;
    target_high: number | null;
    alert_low: number | null;
    alert_high: number | null;
    state: "ok" | "warning" | "alert" | "unknown";
  };
  record_engagements: {
    status: "stored" | "known" | "refused";
    client_event_id: string | null;
    event_id: number | null;
    created_at: string | null;
    code: string | null;
    message: string | null;
    hint: string | null;
  };
};
/** Rows of a page have a place. Its view is there for functions to return: by itself it has none. */
type Placed = { place: number; score: number; source: string };
type Known<Name> = Name extends keyof KnownColumns ? KnownColumns[Name]
  : Name extends `recommended_${string}` | `most_popular_${string}` ? Placed
  : unknown;

type Views = Schema["Views"];
type RefinedView<Name extends keyof Views> = Name extends `${string}_page`
  ? Override<Views[Name], { Row: Columns<Views[Name]["Row"], Placed> }>
  : Views[Name];

type Functions = Schema["Functions"];
type Refined<Name extends keyof Functions> = Override<
  Functions[Name],
  {
    Args: Name extends "record_engagements"
      ? Override<Functions[Name]["Args"], { p_events: SentEvent[] }>
      : Functions[Name]["Args"];
    Returns: Functions[Name]["Returns"] extends (infer Row)[] ? Columns<Row, Known<Name>>[]
      : Functions[Name]["Returns"];
  }
>;

export type Database = Override<
  Generated,
  {
    public: Override<
      Schema,
      {
        Tables: Override<Schema["Tables"], { engagement_events: Event }>;
        Views: { [Name in keyof Views]: RefinedView<Name> };
        Functions: { [Name in keyof Functions]: Refined<Name> };
      }
    >;
  }
>;
