// The lines of a room, oldest first, and the gaps between them.

const MAX_LINES = 500; // a page may stay open for weeks

const GAPS = {
  foreign: "The server was restarted. Lines may be missing here.",
  truncated: "The server lost some lines. They may be missing here.",
  evicted: "You were disconnected for too long. Some lines are missing here.",
};

export class Conversation {
  constructor(list) {
    this.list = list;
    this.atEnd = true; // a user who scrolled up stays there
    list.addEventListener("scroll", () => {
      this.atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 8;
    });
    new ResizeObserver(() => { if (this.atEnd) this.scrollToEnd(); }).observe(list);
  }

  add({ name, text, time }) {
    const line = document.createElement("p");
    const clock = document.createElement("time");
    const author = document.createElement("strong");
    const words = document.createElement("span");
    const at = new Date(time * 1000);
    clock.dateTime = at.toISOString();
    clock.textContent = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    // Never innerHTML, since this is user input. Each part has its own text direction.
    author.textContent = name;
    words.textContent = text;
    author.dir = words.dir = "auto";
    line.append(clock, " ", author, " ", words);
    this.append(line);
  }

  showGap(reason) {
    const line = document.createElement("p");
    line.className = "gap";
    line.textContent = GAPS[reason] ?? "Lines may be missing here.";
    this.append(line);
  }

  append(line) {
    this.list.append(line);
    while (this.list.children.length > MAX_LINES) this.list.firstElementChild.remove();
    if (this.atEnd) this.scrollToEnd();
  }

  scrollToEnd() {
    this.atEnd = true; // also for a line that has not arrived yet
    this.list.scrollTop = this.list.scrollHeight;
  }

  // Let screen readers announce new lines. Called after the history, which they should not read out.
  announce() {
    this.list.setAttribute("aria-live", "polite");
  }
}
