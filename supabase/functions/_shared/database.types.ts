// Written by `two-tower types`. Do not edit: run it again.

export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[];

type Generated = {
  "public": {
    Tables: {
      "author_blocks": {
        Row: {
          "author_id": string;
          "created_at": string;
          "kind": string;
          "user_id": string;
        };
        ComputedFields: never;
        Insert: {
          "author_id": string;
          "created_at"?: string;
          "kind": string;
          "user_id"?: string;
        };
        Update: {
          "author_id"?: string;
          "created_at"?: string;
          "kind"?: string;
          "user_id"?: string;
        };
        Relationships: [];
      };
      "engagement_events": {
        Row: {
          "client_event_id": string | null;
          "created_at": string;
          "dwell_ms": number | null;
          "event_type": string;
          "happened_at": string | null;
          "id": number;
          "post_id": number;
          "post_key": string | null;
          "post_source": string | null;
          "user_id": string;
        };
        ComputedFields: never;
        Insert: {
          "client_event_id"?: string | null;
          "created_at"?: string;
          "dwell_ms"?: number | null;
          "event_type": string;
          "happened_at"?: string | null;
          "id"?: number;
          "post_id": number;
          "post_key"?: string | null;
          "post_source"?: string | null;
          "user_id"?: string;
        };
        Update: {
          "client_event_id"?: string | null;
          "created_at"?: string;
          "dwell_ms"?: number | null;
          "event_type"?: string;
          "happened_at"?: string | null;
          "id"?: number;
          "post_id"?: number;
          "post_key"?: string | null;
          "post_source"?: string | null;
          "user_id"?: string;
        };
        Relationships: [];
      };
      "follows": {
        Row: {
          "created_at": string;
          "followed_id": string;
          "follower_id": string;
        };
        ComputedFields: never;
        Insert: {
          "created_at"?: string;
          "followed_id": string;
          "follower_id"?: string;
        };
        Update: {
          "created_at"?: string;
          "followed_id"?: string;
          "follower_id"?: string;
        };
        Relationships: [];
      };
      "muted_terms": {
        Row: {
          "created_at": string;
          "kind": string;
          "term": string;
          "user_id": string;
        };
        ComputedFields: never;
        Insert: {
          "created_at"?: string;
          "kind": string;
          "term": string;
          "user_id"?: string;
        };
        Update: {
          "created_at"?: string;
          "kind"?: string;
          "term"?: string;
          "user_id"?: string;
        };
        Relationships: [];
      };
      "posts": {
        Row: {
          "author_id": string | null;
          "content": string;
          "created_at": string;
          "deleted_at": string | null;
          "id": number;
        };
        ComputedFields: never;
        Insert: {
          "author_id"?: string | null;
          "content": string;
          "created_at"?: string;
          "deleted_at"?: string | null;
          "id"?: number;
        };
        Update: {
          "author_id"?: string | null;
          "content"?: string;
          "created_at"?: string;
          "deleted_at"?: string | null;
          "id"?: number;
        };
        Relationships: [
          {
            foreignKeyName: "posts_author_id_fkey";
            columns: ["author_id"];
            isOneToOne: false;
            referencedRelation: "profiles";
            referencedColumns: ["user_id"];
          },
        ];
      };
      "profiles": {
        Row: {
          "bio": string | null;
          "created_at": string;
          "handle": string | null;
          "interests": (string)[] | null;
          "user_id": string;
        };
        ComputedFields: never;
        Insert: {
          "bio"?: string | null;
          "created_at"?: string;
          "handle"?: string | null;
          "interests"?: (string)[] | null;
          "user_id"?: string;
        };
        Update: {
          "bio"?: string | null;
          "created_at"?: string;
          "handle"?: string | null;
          "interests"?: (string)[] | null;
          "user_id"?: string;
        };
        Relationships: [];
      };
    };
    Views: {
      "posts_page": {
        Row: {
          "arm": string | null;
          "author_id": string | null;
          "content": string;
          "created_at": string;
          "cursor": string | null;
          "deleted_at": string | null;
          "id": number;
          "place": number | null;
          "score": number | null;
          "source": string | null;
        };
        ComputedFields: never;
        Insert: {
          "arm"?: never;
          "author_id"?: string | null;
          "content"?: string | null;
          "created_at"?: string | null;
          "cursor"?: never;
          "deleted_at"?: string | null;
          "id"?: number | null;
          "place"?: never;
          "score"?: never;
          "source"?: never;
        };
        Update: {
          "arm"?: never;
          "author_id"?: string | null;
          "content"?: string | null;
          "created_at"?: string | null;
          "cursor"?: never;
          "deleted_at"?: string | null;
          "id"?: number | null;
          "place"?: never;
          "score"?: never;
          "source"?: never;
        };
        Relationships: [
          {
            foreignKeyName: "posts_author_id_fkey";
            columns: ["author_id"];
            isOneToOne: false;
            referencedRelation: "profiles";
            referencedColumns: ["user_id"];
          },
        ];
      };
    };
    Functions: {
      "embed_text": {
        Args: { "p_text": string };
        Returns: {
          "base_embedding": (number)[];
          "embedding": (number)[];
          "retry_after": number;
          "status": string;
        }[];
      };
      "explain_for": {
        Args: {
          "p_post_id"?: number;
          "p_post_key"?: string;
          "p_post_source"?: string;
          "p_user_id": string;
        };
        Returns: {
          "because": Json;
          "followed": number;
          "fresh": number;
          "is_eligible": boolean;
          "personal": number;
          "place": number;
          "popular": number;
          "post_id": number;
          "reason": string;
        }[];
      };
      "explain_recommendation": {
        Args: { "p_post_id"?: number; "p_post_key"?: string; "p_post_source"?: string };
        Returns: {
          "because": Json;
          "followed": number;
          "fresh": number;
          "is_eligible": boolean;
          "personal": number;
          "place": number;
          "popular": number;
          "post_id": number;
          "reason": string;
        }[];
      };
      "export_my_data": {
        Args: { "p_cursor"?: string; "p_limit"?: number };
        Returns: {
          "content": Json;
          "cursor": string;
          "table_name": string;
        }[];
      };
      "export_user_data": {
        Args: { "p_cursor"?: string; "p_limit"?: number; "p_user_id": string };
        Returns: {
          "content": Json;
          "cursor": string;
          "table_name": string;
        }[];
      };
      "more_from_author": {
        Args: { "p_author_key": string; "p_limit"?: number };
        Returns: {
          "author_id": string;
          "created_at": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
        }[];
      };
      "most_popular_posts": {
        Args: {
          "p_cursor"?: string;
          "p_exclude"?: (string)[];
          "p_filter"?: Json;
          "p_limit"?: number;
        };
        Returns: {
          "arm": string | null;
          "author_id": string | null;
          "content": string;
          "created_at": string;
          "cursor": string | null;
          "deleted_at": string | null;
          "id": number;
          "place": number | null;
          "score": number | null;
          "source": string | null;
        }[];
        SetofOptions: {
          from: "*";
          to: "posts_page";
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      "popular_posts": {
        Args: { "p_filter"?: Json; "p_limit"?: number };
        Returns: {
          "author_id": string;
          "created_at": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
          "score": number;
        }[];
      };
      "read_metrics": {
        Args: Record<PropertyKey, never>;
        Returns: {
          "alert_high": number;
          "alert_low": number;
          "description": string;
          "name": string;
          "state": string;
          "target_high": number;
          "target_low": number;
          "unit": string;
          "value": number;
        }[];
      };
      "recent_from_followed": {
        Args: { "p_limit"?: number };
        Returns: {
          "author_id": string;
          "created_at": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
        }[];
      };
      "recommend": {
        Args: {
          "p_cursor"?: string;
          "p_exclude"?: (string)[];
          "p_filter"?: Json;
          "p_limit"?: number;
        };
        Returns: {
          "arm": string;
          "author_id": string;
          "created_at": string;
          "cursor": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
          "score": number;
          "source": string;
        }[];
      };
      "recommend_for": {
        Args: {
          "p_cursor"?: string;
          "p_exclude"?: (string)[];
          "p_filter"?: Json;
          "p_limit"?: number;
          "p_user_id": string;
        };
        Returns: {
          "arm": string;
          "author_id": string;
          "created_at": string;
          "cursor": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
          "score": number;
          "source": string;
        }[];
      };
      "recommended_posts": {
        Args: {
          "p_cursor"?: string;
          "p_exclude"?: (string)[];
          "p_filter"?: Json;
          "p_limit"?: number;
        };
        Returns: {
          "arm": string | null;
          "author_id": string | null;
          "content": string;
          "created_at": string;
          "cursor": string | null;
          "deleted_at": string | null;
          "id": number;
          "place": number | null;
          "score": number | null;
          "source": string | null;
        }[];
        SetofOptions: {
          from: "*";
          to: "posts_page";
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      "record_engagements": {
        Args: { "p_each"?: boolean; "p_events": Json };
        Returns: {
          "client_event_id": string;
          "code": string;
          "created_at": string;
          "event_id": number;
          "hint": string;
          "message": string;
          "place": number;
          "status": string;
        }[];
      };
      "remove_post": {
        Args: {
          "p_post_id"?: number;
          "p_post_key"?: string;
          "p_post_source"?: string;
          "p_reason"?: string;
        };
        Returns: undefined;
      };
      "reset_my_feed": { Args: Record<PropertyKey, never>; Returns: undefined };
      "restore_post": {
        Args: { "p_post_id"?: number; "p_post_key"?: string; "p_post_source"?: string };
        Returns: undefined;
      };
      "search_posts": {
        Args: { "p_filter"?: Json; "p_limit"?: number; "p_text": string };
        Returns: {
          "author_id": string;
          "created_at": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
          "score": number;
        }[];
      };
      "set_interests": {
        Args: { "p_post_keys"?: (string)[]; "p_post_source"?: string; "p_texts"?: (string)[] };
        Returns: undefined;
      };
      "similar_posts": {
        Args: {
          "p_filter"?: Json;
          "p_limit"?: number;
          "p_post_id"?: number;
          "p_post_key"?: string;
          "p_post_source"?: string;
        };
        Returns: {
          "author_id": string;
          "created_at": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
          "score": number;
        }[];
      };
      "trending_posts": {
        Args: { "p_limit"?: number; "p_tag"?: string };
        Returns: {
          "author_id": string;
          "created_at": string;
          "post_id": number;
          "post_key": string;
          "post_source": string;
          "score": number;
        }[];
      };
      "what_is_known_of_me": {
        Args: Record<PropertyKey, never>;
        Returns: {
          "amount": number;
          "at": string;
          "kind": string;
          "post_key": string;
          "post_source": string;
          "what": string;
        }[];
      };
    };
    Enums: {
      [_ in never]: never;
    };
    CompositeTypes: {
      [_ in never]: never;
    };
  };
};

type DatabaseWithoutInternals = Omit<Database, "__InternalSupabase">;

type DefaultSchema = DatabaseWithoutInternals[Extract<keyof Database, "public">];

export type Tables<
  DefaultSchemaTableNameOrOptions extends
    | keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  } ? keyof (
      & DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
      & DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"]
    )
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals } ? (
    & DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    & DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"]
  )[TableName] extends {
    Row: infer R;
  } ? R
  : never
  : DefaultSchemaTableNameOrOptions extends keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    ? (DefaultSchema["Tables"] & DefaultSchema["Views"])[DefaultSchemaTableNameOrOptions] extends {
      Row: infer R;
    } ? R
    : never
  : never;

export type TablesInsert<
  DefaultSchemaTableNameOrOptions extends
    | keyof DefaultSchema["Tables"]
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  } ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends
    {
      Insert: infer I;
    } ? I
  : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
    ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
      Insert: infer I;
    } ? I
    : never
  : never;

export type TablesUpdate<
  DefaultSchemaTableNameOrOptions extends
    | keyof DefaultSchema["Tables"]
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  } ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends
    {
      Update: infer U;
    } ? U
  : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
    ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
      Update: infer U;
    } ? U
    : never
  : never;

export type Enums<
  DefaultSchemaEnumNameOrOptions extends
    | keyof DefaultSchema["Enums"]
    | { schema: keyof DatabaseWithoutInternals },
  EnumName extends DefaultSchemaEnumNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  } ? keyof DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"]
    : never = never,
> = DefaultSchemaEnumNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"][EnumName]
  : DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema["Enums"]
    ? DefaultSchema["Enums"][DefaultSchemaEnumNameOrOptions]
  : never;

export type CompositeTypes<
  PublicCompositeTypeNameOrOptions extends
    | keyof DefaultSchema["CompositeTypes"]
    | { schema: keyof DatabaseWithoutInternals },
  CompositeTypeName extends PublicCompositeTypeNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  } ? keyof DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"]
    : never = never,
> = PublicCompositeTypeNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"][
    CompositeTypeName
  ]
  : PublicCompositeTypeNameOrOptions extends keyof DefaultSchema["CompositeTypes"]
    ? DefaultSchema["CompositeTypes"][PublicCompositeTypeNameOrOptions]
  : never;

export const Constants = {
  "public": {
    Enums: {},
  },
} as const;

// From here on: what the catalogue cannot say of the engine's functions and tables.

/** The types of events, as two_tower.signals has them. */
export type EventType =
  | "block_author"
  | "click"
  | "dwell"
  | "hide"
  | "like"
  | "mute_author"
  | "not_interested"
  | "reply"
  | "repost"
  | "skip"
  | "undo_not_interested"
  | "unhide"
  | "unlike"
  | "unrepost"
  | "view";

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
type Columns<Row, Known> = {
  [Name in keyof Row]: Name extends keyof Known ? Known[Name] : Row[Name];
};

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
