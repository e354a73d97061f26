// The button that drops the streams of this page.

// The client ID is a secret: anyone who knows it can drop the stream. crypto.randomUUID needs https or localhost.
export const client = crypto.getRandomValues(new Uint32Array(4)).join("-");

// `openStreams` returns the client IDs of the streams that are open.
export function dropOnClick(openStreams) {
  document.getElementById("drop").addEventListener("click", () => {
    // The button stays enabled when there are none, or it would lose the focus.
    for (const each of openStreams()) {
      // The server may be down; the connection state shows that.
      fetch(`/drop?${new URLSearchParams({ client: each })}`, { method: "POST" }).catch(() => {});
    }
  });
}
