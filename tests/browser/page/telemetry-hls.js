// Stock hls.js that reports by CMCD. Query: see telemetry.js.
import Hls from '/npm/hls.js/dist/hls.min.mjs';
import {session, settings} from './telemetry.js';

const video = document.querySelector('video');
const {session: viewingId, title: titleId, target: telemetry} = settings;
const cmcd = {
    version: 2,
    sessionId: viewingId,
    contentId: titleId,
    includeKeys: [],
    eventTargets: [{
        url: telemetry,
        events: ['ps', 'e', 't', 'bc'],
        interval: 10,
    }],
};
if (settings.responses) {
    cmcd.eventTargets[0].events.push('rr');
}
const requests = {sessionId: viewingId, contentId: titleId, useHeaders: settings.headers};
const hls = new Hls({
    cmcd: telemetry ? cmcd : requests,
    maxBufferLength: settings.bufferS,
    maxMaxBufferLength: settings.bufferS,
    startPosition: settings.startS,
    fragLoadPolicy: {default: {
        maxTimeToFirstByteMs: 10_000,
        maxLoadTimeMs: 60_000,
        timeoutRetry: {maxNumRetry: 1, retryDelayMs: 0, maxRetryDelayMs: 0},
        errorRetry: {maxNumRetry: 1, retryDelayMs: 300, maxRetryDelayMs: 300},
    }},
});
if (telemetry) {
    hls.on(Hls.Events.ERROR, (event, {details, fatal}) => {
        if (fatal) {
            const said = `e=e,ec=("${details}"),sid="${viewingId}",sta=f,ts=${Date.now()},v=2`;
            fetch(telemetry, {method: 'POST', headers: {'Content-Type': 'application/cmcd'}, body: said, keepalive: true})
                .catch(() => {});
        }
    });
}
hls.on(Hls.Events.ERROR, (event, {details, fatal}) => {
    console.error('hls.js', details, fatal);
    if (fatal) {
        window.session.fail();
    }
});

window.session = session(video, () => {
    hls.loadSource(settings.manifest);
    hls.attachMedia(video);
    video.play();
});
