// The machine's page: two event streams, and what is shown of them.

import { client, dropOnClick } from "./drop.js";
import { Load } from "./load.js";
import { show } from "./show.js";
import { followSeed } from "./seed.js";

const load = new Load(`/events/load?client=${client}`);
load.follow();
followSeed("/events/seed");
dropOnClick(() => load.state === "open");

// Cookies have no event that tells of them in all browsers; the end of the seed is when one would come.
const cookies = () => show("cookies", document.cookie || "none");
setInterval(cookies, 1000);
cookies();
