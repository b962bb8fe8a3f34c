// Agents as processes of their own, a relay that can be cut, and a server whose answer can be changed.

import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

export const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../../../..')
const DISPATCH =
  process.env.DISPATCH ?? join(resolve(ROOT, process.env.CARGO_TARGET_DIR ?? 'target'), 'debug/dispatch')
if (!existsSync(DISPATCH)) {
  throw new Error(`${DISPATCH} is not there: cargo build -p keydispatch-cli --features agent`)
}

// How long a condition may take to come true before a test gives up on it.
const PATIENCE_MS = 60_000

/** Waits until `probe` returns without an error, and returns what it returns. */
export async function eventually(what, probe) {
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    try {
      return await probe()
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`not within ${PATIENCE_MS} ms: ${what}`, { cause: error })
    }
    await new Promise((done) => setTimeout(done, 50))
  }
}

// What is set where the tests run is not what is tested.
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('DISPATCH_')))

/** Some agents of one cluster with certificates, the directory of all they write, and what ends them. */
export class Cluster {
  constructor() {
    this.directory = mkdtempSync(join(tmpdir(), 'dispatch-page-'))
    this.agents = new Map()
    this.relays = []
  }

  certificate(name, days) {
    const to = ['--cluster', 'page', '--out', join(this.directory, 'certs'), '--days', String(days)]
    execFileSync(DISPATCH, ['cert', ...to, name], { env: environment })
  }

  /** Starts an agent; others reach it at `advertise` where that is said. */
  async start(name, { advertise, bind = '127.0.0.1:0' } = {}) {
    const file = (...parts) => join(this.directory, ...parts)
    const settings = {
      'node.name': name,
      'node.bind': bind,
      'node.seeds': [...this.agents.values()].map((agent) => agent.mesh).join(','),
      'node.ca': file('certs', 'ca.pem'),
      'node.cert': file('certs', `${name}.pem`),
      'node.key': file('certs', `${name}.key`),
      'pubsub.name': 'page',
      'agent.api.socket': file(`${name}.sock`),
      'agent.api.tcp': '127.0.0.1:0',
      'agent.ops.bind': '127.0.0.1:0',
      'agent.state_dir': file(name),
      'agent.checks.damping': '100ms',
      ...(advertise && { 'node.advertise': advertise }),
    }
    const set = Object.entries(settings).filter(([, value]) => value !== '').flatMap(([key, value]) => ['--set', `${key}=${value}`])
    const child = spawn(DISPATCH, ['agent', ...set], { env: environment, stdio: ['ignore', 'pipe', 'inherit'] })
    const said = []
    for await (const line of createInterface({ input: child.stdout })) {
      said.push(line)
      if (line.includes('dispatch owner')) break
    }
    const after = (pattern) => said.map((line) => line.match(pattern)?.[1]).find(Boolean)
    const agent = {
      child,
      socket: settings['agent.api.socket'],
      mesh: after(/for other nodes at (\S+)/),
      url: after(/^api {4}(http:\S+)/),
    }
    if (!agent.url) throw new Error(`${name} did not start: ${said.join('\n')}`)
    this.agents.set(name, agent)
    return agent
  }

  /** As if its machine had died. */
  async kill(name) {
    const { child } = this.agents.get(name)
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await new Promise((done) => child.once('exit', done))
    this.agents.delete(name)
  }

  /** The JSON of an answer over the unix socket, which has to be a good one. */
  ask(name, method, path, body) {
    return new Promise((answered, failed) => {
      const request = http.request({ socketPath: this.agents.get(name).socket, method, path }, (response) => {
        let text = ''
        response.setEncoding('utf8').on('data', (part) => (text += part))
        response.on('end', () => {
          if (response.statusCode < 300) answered(JSON.parse(text))
          else failed(new Error(`${method} ${path}: ${response.statusCode} ${text}`))
        })
      })
      request.on('error', failed).end(body && JSON.stringify(body))
    })
  }

  async stop() {
    for (const name of [...this.agents.keys()]) await this.kill(name)
    for (const relay of this.relays) relay.close()
    rmSync(this.directory, { recursive: true })
  }

  async relay() {
    const relay = await Relay.start()
    this.relays.push(relay)
    return relay
  }
}

/** What stands between two nodes, and forwards as long as it is told to. */
export class Relay {
  static async start() {
    const relay = new Relay()
    relay.sockets = new Set()
    relay.cut = { there: false, back: false }
    relay.server = net.createServer((near) => {
      const far = net.connect(relay.target)
      // What is cut is lost, as on a wire: the connection stays, and nothing comes.
      near.on('data', (part) => relay.cut.there || far.write(part))
      far.on('data', (part) => relay.cut.back || near.write(part))
      for (const [one, other] of [[near, far], [far, near]]) {
        relay.sockets.add(one)
        one.on('error', () => other.destroy()).on('close', () => (other.destroy(), relay.sockets.delete(one)))
      }
    })
    await new Promise((done) => relay.server.listen(0, '127.0.0.1', done))
    return relay
  }

  get address() {
    return `127.0.0.1:${this.server.address().port}`
  }

  to(address) {
    const [host, port] = address.split(':')
    this.target = { host, port: Number(port) }
  }

  close() {
    this.server.close()
    for (const socket of this.sockets) socket.destroy()
  }
}

/** An address of this machine that nobody listens at: for a node that says it is somewhere else. */
export async function freeAddress() {
  const server = net.createServer()
  await new Promise((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address()
  await new Promise((done) => server.close(done))
  return `127.0.0.1:${port}`
}

/** A web server whose answer can be changed, and which counts who asked for what. */
export async function server() {
  const server = http.createServer((request, response) => {
    asked.push(request.url)
    response.writeHead(server.status).end('x')
  })
  const asked = []
  server.status = 200
  server.asked = asked
  await new Promise((done) => server.listen(0, '127.0.0.1', done))
  server.url = `http://127.0.0.1:${server.address().port}`
  return server
}
