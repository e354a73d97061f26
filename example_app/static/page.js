// The page: two event streams, and what is shown of them.

import { Load } from "./load.js";
import { show } from "./show.js";
import { followSeed } from "./seed.js";

// The server drops the stream of the page that asks for it, so this page needs a name that no other page can guess.
// (crypto.randomUUID would be shorter, but browsers have it for https and localhost only.)
const client = crypto.getRandomValues(new Uint32Array(4)).join("-");

const load = new Load(`/events/load?client=${client}`);
load.follow();
followSeed("/events/seed");

document.getElementById("drop").addEventListener("click", async () => {
  if (load.state !== "open") return; // there is nothing to drop; the button stays enabled, or it would lose the focus
  try {
    await fetch(`/drop?client=${client}`, { method: "POST" });
  } catch {
    // The server has gone in this very moment, and the state will say so.
  }
});

// Cookies have no event that tells of them in all browsers; the end of the seed is when one would come.
const cookies = () => show("cookies", document.cookie || "none");
setInterval(cookies, 1000);
cookies();
