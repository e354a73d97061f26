// The page of the machine: one event stream.

import { client, dropOnClick } from "./drop.js";
import { Load } from "./load.js";

const load = new Load(`/events/load?client=${client}`);
load.follow();
dropOnClick(() => (load.state === "open" ? [client] : []));
