// The page, as Chromium shows it: troubles made on purpose, every view, and how people with other needs than a mouse and a wide
// bright screen get on with it.
//
// SCREENSHOTS=DIRECTORY writes a picture of each view.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { chromium } from 'playwright-core'
import { Cluster, eventually, freeAddress, server } from './agents.mjs'

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const ROOM = 'room-7'

let cluster, browser, web, elsewhere, url, ways

before(async () => {
  cluster = new Cluster()
  web = await server()
  elsewhere = await server()
  cluster.certificate('a', 365)
  cluster.certificate('b', 365)
  cluster.certificate('c', 5)
  url = (await cluster.start('a')).url
  await cluster.start('b')
  // The others reach c through this.
  ways = await cluster.relay()
  const bind = await freeAddress()
  ways.to(bind)
  await cluster.start('c', { bind, advertise: ways.address })
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    // Root has no sandbox of Chromium's, and what is shown is our own.
    args: ['--no-sandbox'],
  })
})

after(async () => {
  await browser?.close()
  await cluster?.stop()
  web?.close()
  elsewhere?.close()
})

/** A page that notes all that is loaded, and whatever the browser complains of. */
async function open(path, options = {}) {
  const context = await browser.newContext({ viewport: { width: 900, height: 620 }, ...options })
  const page = await context.newPage()
  page.loaded = []
  page.complaints = []
  page.on('request', (request) => page.loaded.push(request.url()))
  page.on('console', (message) => page.complaints.push(message.text()))
  page.on('pageerror', (error) => page.complaints.push(String(error)))
  await page.goto(url + path)
  return page
}

/** That nothing came from elsewhere, and nobody complained. */
function clean(page) {
  for (const loaded of page.loaded) assert(loaded.startsWith(`${url}/`) || loaded.startsWith('data:'), loaded)
  assert.deepEqual(page.complaints, [])
}

/** That axe, which knows the rules of WCAG, finds nothing. */
async function accessible(page) {
  // By the debugger, which the policy of the page is not for.
  await page.evaluate(AXE)
  const { violations } = await page.evaluate(() => axe.run({ resultTypes: ['violations'] }))
  const found = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html).join(' ')}`)
  assert.deepEqual(found, [], page.url())
}

const sentence = (page) => page.getByRole('status').innerText()

/** Waits until the sentence on top is like this. */
async function says(page, pattern) {
  return eventually(`the page says ${pattern}`, async () => {
    await page.goto(url)
    assert.match(await sentence(page), pattern)
  })
}

/** The views, by what a person has to do to get there. */
const VIEWS = {
  now: async (page) => page.getByRole('link', { name: 'Now', exact: true }).click(),
  members: async (page) => page.getByRole('link', { name: 'Who sees whom' }).click(),
  events: async (page) => page.getByRole('link', { name: 'Events' }).click(),
  type: async (page) => {
    await VIEWS.now(page)
    await page.getByRole('table', { name: 'Types' }).getByRole('link', { name: 'chat' }).click()
  },
  key: async (page) => {
    await VIEWS.type(page)
    await page.getByLabel('Who owns the key').fill(ROOM)
    await page.getByRole('button', { name: 'Look up' }).click()
  },
  'what-if': async (page) => {
    await VIEWS.type(page)
    await page.getByRole('button', { name: 'What if chat-1 goes' }).click()
  },
}

/** What each view has to say in a cluster of three with chat-1 and chat-2. */
const SHOWN = {
  now: /Types/,
  members: /Each row is how that node sees the others/,
  events: /chat-1 was registered on a/,
  type: /2 online of 2/,
  key: /3 of 3 agents say the same/,
  'what-if': /If chat-1 of chat went, \d+\.\d % of the keys would move\. Nothing was changed\./,
}

const chat = (more) => ({ type: 'chat', address: web.url, lease: { agent: true }, ...more })

test('the sentence on top says what is wrong, for troubles made on purpose', async (t) => {
  const page = await open('/')
  await t.test('a certificate near its end', () => says(page, /^The certificate of c ends in 4 days\.$/))
  await t.test('a check that fails', async () => {
    await cluster.ask('a', 'PUT', '/v1/endpoints/chat-1', chat({ check: { http: '/healthz', every: '100ms', fall: 2 } }))
    await cluster.ask('b', 'PUT', '/v1/endpoints/chat-2', chat())
    await says(page, /^The certificate of c/)
    web.status = 503
    await says(page, /^chat has 1 of 2 instances online: chat-1 is offline for \d+ s: http 503/)
  })
  await t.test('a type without an owner', async () => {
    await cluster.ask('b', 'POST', '/v1/endpoints/chat-2/state', { state: 'offline', reason: 'by hand' })
    await says(page, /^Nobody serves chat: chat-1 is offline for \d+ s: http 503.*chat-2 is offline for \d+ s: by hand/)
  })
  await t.test('an instance that drains', async () => {
    web.status = 200
    await cluster.ask('b', 'POST', '/v1/endpoints/chat-2/state', { state: 'draining', reason: 'deploy 1.5' })
    await says(page, /Of chat, chat-2 is draining for \d+ s: deploy 1\.5\.$/)
    await cluster.ask('b', 'POST', '/v1/endpoints/chat-2/state', { state: 'online', reason: '' })
    await says(page, /^The certificate of c ends in 4 days\.$/)
  })
  await accessible(page)
  clean(page)
})

test('each view is reached by its names, loads nothing from elsewhere, and breaks no rule of WCAG, dark and narrow', async () => {
  for (const [name, go] of Object.entries(VIEWS)) {
    const page = await open('/')
    await go(page)
    assert.match(await page.getByRole('main').innerText(), SHOWN[name], name)
    await accessible(page)
    if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) })
    const [light, dark] = [await colours(page), (await page.emulateMedia({ colorScheme: 'dark' }), await colours(page))]
    assert.notEqual(light, dark, 'dark is another colour')
    await accessible(page)
    await page.setViewportSize({ width: 320, height: 640 })
    const width = await page.evaluate(() => document.scrollingElement.scrollWidth)
    assert(width <= 320, `${name} is ${width} wide`)
    await accessible(page)
    if (process.env.SCREENSHOTS && name === 'type') {
      await page.screenshot({ path: join(process.env.SCREENSHOTS, 'narrow-dark.png') })
    }
    clean(page)
    await page.context().close()
  }
})

const colours = (page) =>
  page.evaluate(() => [getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.body).color].join())

test('without script all of it works as well', async () => {
  for (const [name, go] of Object.entries(VIEWS)) {
    const page = await open('/', { javaScriptEnabled: false })
    await go(page)
    assert.match(await page.getByRole('main').innerText(), SHOWN[name], name)
    clean(page)
    await page.context().close()
  }
})

test('the keyboard alone gets to a key and to what would move', async () => {
  const page = await open('/')
  const focused = () => page.evaluate(() => document.activeElement.ariaLabel ?? document.activeElement.innerText)
  const tabTo = async (text) => {
    for (let presses = 0; presses < 40; presses++) {
      await page.keyboard.press('Tab')
      if ((await focused()) === text) return
    }
    assert.fail(`no Tab leads to ${text}`)
  }
  await page.keyboard.press('Tab')
  assert.equal(await focused(), 'To the content')
  await page.keyboard.press('Enter')
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main')
  await tabTo('chat')
  await page.keyboard.press('Enter')
  await page.waitForURL('**/page/type?type=chat')
  await page.getByLabel('Who owns the key').focus()
  await page.keyboard.type(ROOM)
  await page.keyboard.press('Enter')
  await page.waitForURL('**/page/key?*')
  assert.match(await page.getByRole('main').innerText(), SHOWN.key)
  await page.goBack()
  await tabTo('What if chat-2 goes')
  await page.keyboard.press('Enter')
  await page.waitForURL('**/page/what-if?*')
  // Where the focus is has to be seen.
  await page.keyboard.press('Tab')
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle)
  assert.notEqual(outline, 'none')
  clean(page)
})

test('a screen reader has a name for everything', async () => {
  const page = await open('/page/type?type=chat')
  const tree = await page.locator('body').ariaSnapshot()
  for (const part of [
    'navigation "Views"',
    'main',
    'heading "A type" [level=1]',
    'textbox "Who owns the key"',
    'button "Look up"',
    'table "Instances"',
    'columnheader "By weight"',
    'rowheader "chat-1"',
    'button "What if chat-2 goes"',
  ]) {
    assert(tree.includes(part), `${part} is not in\n${tree}`)
  }
  await page.goto(`${url}/page/events`)
  assert.equal(await page.locator('[aria-current=page]').innerText(), 'Events')
  clean(page)
})

test('the policy keeps out what somebody would bring in', async () => {
  const page = await open('/')
  await page.evaluate(() => {
    window.refused = new Set()
    document.addEventListener('securitypolicyviolation', (event) => window.refused.add(event.effectiveDirective))
  })
  await page.evaluate((from) => {
    const add = (tag, attributes) => document.body.append(Object.assign(document.createElement(tag), attributes))
    add('img', { src: `${from}/image` })
    add('script', { src: `${from}/script` })
    add('script', { textContent: 'window.ran = true' })
    add('style', { textContent: 'body { display: none }' })
    add('iframe', { src: `${from}/frame` })
    fetch(`${from}/fetch`).catch(() => {})
  }, elsewhere.url)
  const directives = ['connect-src', 'frame-src', 'img-src', 'script-src-elem', 'style-src-elem']
  await eventually('the browser refuses all of it', async () => {
    assert.deepEqual(await page.evaluate(() => [...window.refused].sort()), directives)
  })
  assert.equal(await page.evaluate(() => window.ran), undefined)
  assert.deepEqual(elsewhere.asked, [])
  // Nobody puts it into a frame of theirs.
  const headers = (await page.reload()).headers()
  assert.match(headers['content-security-policy'], /default-src 'none'.*frame-ancestors 'none'/)
  assert.equal(headers['x-content-type-options'], 'nosniff')
})

test('what somebody registered is shown as text', async () => {
  const name = '<img src=x onerror=alert(1)>'
  await cluster.ask('a', 'PUT', '/v1/endpoints/odd', { ...chat(), type: '"><script>alert(1)</script>', name })
  const page = await open('/')
  await page.getByRole('table', { name: 'Types' }).getByRole('link', { name: 'script' }).click()
  await page.getByRole('rowheader', { name }).waitFor()
  await accessible(page)
  clean(page)
  await cluster.ask('a', 'DELETE', '/v1/endpoints/odd')
})

test('ways that are cut, and a node that is killed, are named on top and in the matrix', async (t) => {
  const page = await open('/')
  const row = async (by) => {
    await page.goto(`${url}/page/members`)
    const row = page.getByRole('table', { name: 'Nodes by nodes' }).getByRole('row', { name: new RegExp(`^${by} `) })
    return row.innerText()
  }
  await t.test('a way that carries in one direction only', async () => {
    // What a sends to c is lost; c reaches a, and so is up.
    ways.cut.there = true
    await says(page, /^c is up, and does not answer a: /)
    await eventually('the matrix shows it', async () => assert.match(await row('c'), /no answer/))
  })
  await t.test('a node is killed', async () => {
    await cluster.kill('c')
    await says(page, /^c is down for \d+ s: /)
    await eventually('the matrix shows it', async () => assert.match(await row('a'), /down/))
    clean(page)
  })
})
