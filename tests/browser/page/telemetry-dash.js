// Stock dash.js that reports by CMCD. Query: see telemetry.js.
import dashjs from '/npm/dashjs/dist/modern/esm/dash.all.min.js';
import {session, settings} from './telemetry.js';

const video = document.querySelector('video');
const player = dashjs.MediaPlayer().create();
const {bufferS} = settings;
player.initialize();
player.updateSettings({streaming: {
    buffer: {bufferTimeDefault: bufferS, bufferTimeAtTopQuality: bufferS, bufferTimeAtTopQualityLongForm: bufferS},
    retryAttempts: {MediaSegment: 1},
    retryIntervals: {MediaSegment: 300},
}});
const {session: viewingId, title: titleId, target: telemetry} = settings;
const cmcd = {
    version: 2,
    sid: viewingId,
    cid: titleId,
    eventTargets: [{
        url: telemetry,
        events: ['ps', 'e', 't'],
        interval: 10,
        enabledKeys: [
            'bl', 'br', 'bs', 'bsa', 'bsd', 'bsda', 'cdn', 'cid', 'e', 'ec', 'msd', 'mtp', 'pb', 'pr', 'sf', 'sid', 'sn',
            'st', 'sta', 'tb', 'tpb', 'ts', 'v',
        ],
    }],
};
if (settings.responses) {
    cmcd.eventTargets[0].events.push('rr');
    cmcd.eventTargets[0].enabledKeys.push('rc', 'ttfb', 'ttlb', 'url');
}
const requests = {enabled: true, sid: viewingId, cid: titleId, mode: settings.headers ? 'header' : 'query'};
player.updateSettings({streaming: {cmcd: telemetry ? cmcd : requests}});
player.on(dashjs.MediaPlayer.events.ERROR, ({error}) => {
    console.error('dash.js', error.code, error.message);
    if (error.code !== null) {  // as of reports that cannot be sent
        window.session.fail();
    }
});

window.session = session(video, () => {
    player.attachView(video);
    player.setAutoPlay(true);
    player.attachSource(settings.manifest, settings.startS);
});
