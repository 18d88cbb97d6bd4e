// Drives Chromium for one test: opens a page over a throttled network, waits until the page says that it is done,
// prints what it measured as one JSON line. Arguments, as JSON: chromium, profile, url, kbps, latencyMs, timeoutMs.
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
try {
    const page = context.pages()[0] ?? await context.newPage();
    page.on('console', message => told.push(`${message.type()}: ${message.text()}`));
    page.on('pageerror', error => told.push(`uncaught: ${error.stack ?? error}`));
    await page.goto(given.url);
    const network = await context.newCDPSession(page);
    await network.send('Network.enable');
    await network.send('Network.emulateNetworkConditions', {
        offline: false,
        latency: given.latencyMs,
        downloadThroughput: given.kbps * 125,
        uploadThroughput: given.kbps * 125,
    });
    await page.evaluate(() => window.session.start());
    await page.waitForFunction(() => window.session.done, undefined, {timeout: given.timeoutMs, polling: 100})
        .catch(error => told.push(`not done: ${error.message}`));
    process.stdout.write(JSON.stringify({...await page.evaluate(() => window.session.report()), told}) + '\n');
} finally {
    await context.close();
}
