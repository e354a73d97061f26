// The number of pages in the room. Each server announces its own count periodically.

const EXPIRY = 12000; // milliseconds after which a silent server is removed; servers announce every five seconds

export class Presence {
  constructor(show) {
    this.show = show;
    this.servers = new Map();
    setInterval(() => { if (this.servers.size) this.update(); }, 1000);
  }

  set(server, count) {
    this.servers.set(server, { count, time: Date.now() });
    this.update();
  }

  clear() {
    this.servers.clear();
    this.show("");
  }

  update() {
    let sum = 0;
    for (const [server, { count, time }] of this.servers) {
      if (Date.now() - time > EXPIRY) this.servers.delete(server);
      else sum += count;
    }
    this.show(sum === 0 ? "" : sum === 1 ? "only you" : `${sum} here`);
  }
}
