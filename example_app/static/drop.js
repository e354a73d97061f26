// The button that drops the stream of this page.

// The client ID is a secret: anyone who knows it can drop the stream. crypto.randomUUID needs https or localhost.
export const client = crypto.getRandomValues(new Uint32Array(4)).join("-");

export function dropOnClick(isOpen) {
  document.getElementById("drop").addEventListener("click", async () => {
    if (!isOpen()) return; // the button stays enabled, or it would lose the focus
    try {
      await fetch(`/drop?client=${client}`, { method: "POST" });
    } catch {
      // The server is down; the connection state shows that.
    }
  });
}
