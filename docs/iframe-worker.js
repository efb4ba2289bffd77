// A page that is opened from disk may not start a Worker: there, search's script runs in a hidden frame instead.
if (location.protocol === 'file:') window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = Object.assign(document.createElement('iframe'), {hidden: true})
    this.ready = new Promise(resolve => frame.onload = () => {
      frame.onload = null
      const inner = frame.contentWindow, script = inner.document.createElement('script')
      inner.postMessage = data => this.dispatchEvent(new MessageEvent('message', {data}))
      script.onload = () => resolve(inner)
      script.src = url
      inner.document.head.append(script)
    })
    document.body.append(frame)
  }
  postMessage(data) { this.ready.then(inner => inner.dispatchEvent(new inner.MessageEvent('message', {data}))) }
}
