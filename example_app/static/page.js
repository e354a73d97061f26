// The page of the machine: two event streams.

import { client, dropOnClick } from "./drop.js";
import { Load } from "./load.js";
import { show } from "./show.js";
import { followSeed } from "./seed.js";

const load = new Load(`/events/load?client=${client}`);
load.follow();
followSeed("/events/seed");
dropOnClick(() => load.state === "open");

// Not all browsers have an event for cookie changes.
const cookies = () => show("cookies", document.cookie || "none");
setInterval(cookies, 1000);
cookies();
