// How many are in the room, over all servers: each tells its own count, again and again.

const SILENCE = 12000; // milliseconds after which a server that says nothing is gone; it says something every five seconds

export class Presence {
  constructor(show) {
    this.show = show;
    this.servers = new Map();
    setInterval(() => { if (this.servers.size) this.tell(); }, 1000);
  }

  note(server, count) {
    this.servers.set(server, { count, heard: Date.now() });
    this.tell();
  }

  forget() {
    this.servers.clear();
    this.show("");
  }

  tell() {
    let sum = 0;
    for (const [server, { count, heard }] of this.servers) {
      if (Date.now() - heard > SILENCE) this.servers.delete(server);
      else sum += count;
    }
    this.show(sum === 0 ? "" : sum === 1 ? "only you" : `${sum} here`);
  }
}
