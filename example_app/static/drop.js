// The button that has the server drop this page's own stream.

// The server drops the stream of the page that asks for it, so this page needs a name that no other page can guess.
// (crypto.randomUUID would be shorter, but browsers have it for https and localhost only.)
export const client = crypto.getRandomValues(new Uint32Array(4)).join("-");

export function dropOnClick(isOpen) {
  document.getElementById("drop").addEventListener("click", async () => {
    if (!isOpen()) return; // there is nothing to drop; the button stays enabled, or it would lose the focus
    try {
      await fetch(`/drop?client=${client}`, { method: "POST" });
    } catch {
      // The server has gone in this very moment, and the state will say so.
    }
  });
}
