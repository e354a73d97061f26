// What was written in a room, oldest first, and where something is missing.

const KEPT = 500; // lines; a page may stay open for weeks

const GAPS = {
  foreign: "The server was started anew. What was written in the meantime may be missing here.",
  rewound: "The server has lost some of what was written. It may be missing here.",
  evicted: "You were away for long. Some of what was written in the meantime is missing here.",
};

export class Conversation {
  constructor(list) {
    this.list = list;
    this.atEnd = true; // who has scrolled up to read is left there
    list.addEventListener("scroll", () => {
      this.atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 8;
    });
    new ResizeObserver(() => { if (this.atEnd) this.goToEnd(); }).observe(list);
  }

  add({ name, text, time }) {
    const line = document.createElement("p");
    const clock = document.createElement("time");
    const who = document.createElement("strong");
    const words = document.createElement("span");
    const at = new Date(time * 1000);
    clock.dateTime = at.toISOString();
    clock.textContent = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    // Never innerHTML: these are other people's words. And each has its own direction, or it would turn the others'.
    who.textContent = name;
    words.textContent = text;
    who.dir = words.dir = "auto";
    line.append(clock, " ", who, " ", words);
    this.append(line);
  }

  tellGap(reason) {
    const line = document.createElement("p");
    line.className = "gap";
    line.textContent = GAPS[reason] ?? "Something may be missing here.";
    this.append(line);
  }

  append(line) {
    this.list.append(line);
    while (this.list.children.length > KEPT) this.list.firstElementChild.remove();
    if (this.atEnd) this.goToEnd();
  }

  goToEnd() {
    this.atEnd = true; // the line that this is called for may not be here yet
    this.list.scrollTop = this.list.scrollHeight;
  }

  // From now on a screen reader reads out what comes. The history it would not want to hear all at once.
  announce() {
    this.list.setAttribute("aria-live", "polite");
  }
}
