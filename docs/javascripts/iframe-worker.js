// A page that is opened as a file may not start a worker, in which the site searches. The script of the worker then runs
// in a hidden frame of the page, with the part of a worker's interface that the search uses.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #scope;
    #loaded;

    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.#scope = frame.contentWindow;
      this.#scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.#loaded = new Promise((resolve) => {
        const script = frame.contentDocument.createElement("script");
        script.src = new URL(url, location);
        script.onload = resolve;
        frame.contentDocument.head.append(script);
      });
    }

    async postMessage(data) {
      await this.#loaded;
      this.#scope.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
