// Drives Chromium for one test: opens a page over a throttled network, waits until the page says that it is done,
// prints what it measured as one JSON line. Arguments, as JSON: chromium, profile, url, kbps, latencyMs, timeoutMs, steps
// (each: when, an expression over the page; kbps, what the network carries from then on). Beside what the page measured
// stands all that it sent with CMCD: method, url, headers, body, status (0: no answer), and of
// telemetry the answer.
import {chromium} from 'playwright-core';

const given = JSON.parse(process.argv[2]);
const context = await chromium.launchPersistentContext(given.profile, {
    executablePath: given.chromium,
    headless: true,
    viewport: {width: 640, height: 400},
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync', '--autoplay-policy=no-user-gesture-required', '--mute-audio'],
});
const told = [];
const sent = [];
const noted = [];
const note = async request => {
    const headers = Object.entries(await request.allHeaders()).filter(([name]) => /^(cmcd-|content-type$)/.test(name));
    const url = request.url();
    if (url.includes('/v1/telemetry') || url.includes('CMCD=') || headers.some(([name]) => name.startsWith('cmcd-'))) {
        const body = request.postDataBuffer()?.toString() ?? '';
        const response = await request.response();
        const answer = url.includes('/v1/telemetry') ? await response?.text() ?? '' : '';
        const status = response?.status() ?? 0;
        sent.push({method: request.method(), url, headers: Object.fromEntries(headers), body, status, answer});
    }
};
try {
    const page = context.pages()[0] ?? await context.newPage();
    page.on('console', message => told.push(`${message.type()}: ${message.text()}`));
    for (const event of ['requestfinished', 'requestfailed']) {
        page.on(event, request => noted.push(note(request).catch(() => {})));  // of what the browser's end cuts off
    }
    page.on('pageerror', error => told.push(`uncaught: ${error.stack ?? error}`));
    await page.goto(given.url);
    const network = await context.newCDPSession(page);
    await network.send('Network.enable');
    const carry = kbps => network.send('Network.emulateNetworkConditions', {
        offline: false,
        latency: given.latencyMs,
        downloadThroughput: kbps * 125,
        uploadThroughput: kbps * 125,
    });
    await carry(given.kbps);
    await page.waitForFunction(() => window.session);
    await page.evaluate(() => { window.session.start(); });
    const until = when => page.waitForFunction(when, undefined, {timeout: given.timeoutMs, polling: 100});
    try {
        for (const step of given.steps ?? []) {
            await until(step.when);
            await carry(step.kbps);
        }
        await until('window.session.done');
    } catch (error) {
        told.push(`not done: ${error.message}`);
    }
    await Promise.all(noted);
    process.stdout.write(JSON.stringify({...await page.evaluate(() => window.session.report()), told, sent}) + '\n');
} finally {
    await context.close();
}
