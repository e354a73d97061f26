// The page of an invalid room names it.

import { show } from "./show.js";

show("room", `, not “${new URLSearchParams(location.search).get("room") ?? ""}”`);
