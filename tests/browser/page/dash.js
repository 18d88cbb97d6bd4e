// Stock dash.js with CMCD on. Query: title (its folder), segments (how many to fetch), session (its CMCD sid), cmsd
// (honour CMSD), rule (ask Playhead by the custom rule), degraded (follow degraded decisions too).
import dashjs from '/npm/dashjs/dist/modern/esm/dash.all.min.js';
import {Decisions} from '/players/decisions.js';
import {followPlayhead} from '/players/dashjs.js';
import {measure, noteAnswers} from './measure.js';

const query = new URLSearchParams(location.search);
const video = document.querySelector('video');
const player = dashjs.MediaPlayer().create();
player.initialize();
player.updateSettings({
    streaming: {
        buffer: {bufferTimeDefault: 30, bufferTimeAtTopQuality: 30, bufferTimeAtTopQualityLongForm: 30},
        cmcd: {enabled: true, sid: query.get('session'), cid: query.get('title')},
        cmsd: {enabled: query.has('cmsd'), abr: {applyMb: query.has('cmsd')}},
    },
});
const answers = noteAnswers();
const watch = measure(video, Number(query.get('segments')));
player.on(dashjs.MediaPlayer.events.FRAGMENT_LOADING_COMPLETED, ({request}) => {
    if (request.mediaType === 'video' && !request.isInitializationRequest()) {
        watch.fetched();
    }
});
player.on(dashjs.MediaPlayer.events.ERROR, ({error}) => console.error('dash.js', error.code, error.message));

const decisions = new Decisions({sessionId: query.get('session'), followDegraded: query.has('degraded')});
if (query.has('rule')) {
    followPlayhead(dashjs, player, decisions);
}

window.session = {
    get done() { return watch.done; },
    start() {
        player.attachView(video);
        player.setAutoPlay(true);
        player.attachSource(new URL(`/${query.get('title')}/manifest.mpd`, location).href);
    },
    report: () => ({...watch.report(), decisions: decisions.report(), answers}),
};
