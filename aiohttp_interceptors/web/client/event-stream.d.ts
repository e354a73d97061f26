/** Why a connection ended, or why there is none. */
export type ErrorReason =
  /** The server ended the response. */
  | "ended"
  /** The connection was lost in the middle of the response. */
  | "cut"
  /** No byte arrived for one and a half intervals of heartbeats, or no response within 30 seconds. */
  | "stalled"
  /** The request failed: there is no network, or no server, or the server does not allow the origin of the page. */
  | "unreachable"
  /** The response was no event stream; `status` says what it was. */
  | "refused"
  /** The response was 401 or 403, and `onUnauthorized` gave no other access, or raised. */
  | "unauthorized"
  /** The response was 204: there is nothing more to come. */
  | "finished";

/** The event `error`. */
export interface StreamErrorEvent extends Event {
  readonly reason: ErrorReason;
  /** The status of the response, if there was one. */
  readonly status?: number;
  /** Milliseconds until the next attempt, if there is one. */
  readonly delay?: number;
  /** Whether this is the end: `readyState` is `CLOSED`. */
  readonly final?: boolean;
  /** What `fetch` or a function of the page raised, in the tab that has the connection. */
  readonly error?: unknown;
}

export interface StreamEventMap {
  open: Event;
  message: MessageEvent<string>;
  /** Of a Hub, unless it has another `gap_event`: events are missing. The data is JSON with the reason. */
  gap: MessageEvent<string>;
  error: StreamErrorEvent;
  /** `readyState` has changed. */
  statechange: Event;
}

/** Access to a stream, which replaces what the request had before. */
export interface Access {
  /** Headers to add, or to send with another value. */
  headers?: HeadersInit;
  /** The URL to request from now on. */
  url?: string;
}

/** What `onUnauthorized` returns: other access, or nothing. */
export type Renewal = Access | null | undefined | false | void;

export interface EventStreamOptions {
  /** The method. Default: `"GET"`. */
  method?: string;
  /** The headers, or a plain or async function that returns them for each request. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** The body, which is sent with each request. */
  body?: BodyInit;
  /** As for `fetch`, unless there is `withCredentials`. Default: `"same-origin"`. */
  credentials?: RequestCredentials;
  /** As for `EventSource`: `credentials: "include"`. */
  withCredentials?: boolean;
  /**
   * Who reads the stream, such as the ID of the user who is signed in. Tabs with the same URL, identity and credentials
   * share one connection. `""` is an identity too, that of a stream that is the same for everyone. Default: `null`, and
   * this tab has its own connection. A request that is not repeated cannot be shared.
   */
  identity?: string | null;
  /**
   * Whether a reload of the tab resumes after its last event, which `sessionStorage` holds, as far as the browser allows
   * it. Default: `false`.
   */
  resume?: boolean;
  /** The event ID after which the stream starts, if `resume` has found none. */
  lastEventId?: string;
  /** Whether the request is repeated after its end. Default: for GET. */
  reconnect?: boolean;
  /**
   * Seconds of idleness after which the server sends a heartbeat; 0 if it sends none. Default: what the response says in
   * `Event-Stream-Heartbeat`.
   */
  heartbeat?: number;
  /**
   * Called when a request is refused with 401 or 403. Returns other access, with which the request is repeated at once
   * (`{}` if `headers` returns it), or nothing, which ends the stream. If it raises, the request is repeated later.
   */
  onUnauthorized?: (refusal: { status: 401 | 403; url: string }) => Renewal | Promise<Renewal>;
}

/**
 * An event stream. The interface is that of `EventSource`, with more options and more to tell.
 *
 * @throws TypeError if options exclude each other, or the browser cannot do what they ask for.
 */
export class EventStream extends EventTarget {
  constructor(url: string | URL, options?: EventStreamOptions);
  static readonly CONNECTING: 0;
  static readonly OPEN: 1;
  static readonly CLOSED: 2;
  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSED: 2;
  readonly url: string;
  readonly readyState: 0 | 1 | 2;
  /** The ID of the last event, which the next request sends. */
  readonly lastEventId: string;
  onopen: ((event: Event) => void) | null;
  onmessage: ((event: MessageEvent<string>) => void) | null;
  onerror: ((event: StreamErrorEvent) => void) | null;
  ongap: ((event: MessageEvent<string>) => void) | null;
  onstatechange: ((event: Event) => void) | null;
  addEventListener<K extends keyof StreamEventMap>(
    type: K,
    listener: (event: StreamEventMap[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: (event: MessageEvent<string>) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof StreamEventMap>(
    type: K,
    listener: (event: StreamEventMap[K]) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: (event: MessageEvent<string>) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
  /** End the stream. Idempotent. Another tab with the same identity takes over its connection. */
  close(): void;
}

/** An event, or an event ID without one. */
export interface Entry {
  type?: string;
  data?: string;
  /** The last event ID from here on. */
  id: string;
  /** Whether the entry has set it. */
  hasId: boolean;
}

/** An incremental parser of event streams (WHATWG HTML 9.2.6). */
export class Parser {
  constructor(lastEventId?: string);
  /** The last event ID. */
  readonly lastEventId: string;
  /** The reconnection time in milliseconds, or `null` if the stream has set none. */
  readonly retry: number | null;
  /** Parse the next bytes, and return the entries that they complete. */
  push(bytes: Uint8Array): Entry[];
}
