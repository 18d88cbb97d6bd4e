// Stock Shaka Player that reports by CMCD. Query: see telemetry.js; release: the build that says no states.
import {session, settings} from './telemetry.js';

const release = new URLSearchParams(location.search).has('release');
await import(`/npm/shaka-player/dist/shaka-player.compiled${release ? '' : '.debug'}.js`);
const {shaka} = window;
shaka.log?.setLevel(shaka.log.Level.NONE);
const video = document.querySelector('video');
const player = new shaka.Player();
const {session: viewingId, title: titleId, target: telemetry} = settings;
player.configure({streaming: {bufferingGoal: settings.bufferS, rebufferingGoal: 0.5}});
const cmcd = {
    enabled: true,
    version: 2,
    sessionId: viewingId,
    contentId: titleId,
    eventTargets: [{
        url: telemetry,
        events: ['ps', 'e', 't', 'bc'],
        interval: 10,
    }],
};
if (settings.responses) {
    cmcd.eventTargets[0].events.push('rr');
}
const requests = {enabled: true, sessionId: viewingId, contentId: titleId, useHeaders: settings.headers};
player.configure({cmcd: telemetry ? cmcd : requests});
player.addEventListener('error', ({detail}) => {
    console.error('Shaka Player', detail.code, detail.severity);
    window.session.fail();
});

let started = false;
let stalls = 0;
video.addEventListener('playing', () => { started = true; });
player.addEventListener('buffering', ({buffering}) => { stalls += buffering && started ? 1 : 0; });

window.session = session(video, async () => {
    await player.attach(video);
    await player.load(settings.manifest, settings.startS || undefined);
    await video.play();
}, () => stalls);
