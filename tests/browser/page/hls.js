// hls.js with CMCD on and Playhead's abrController. Query: title (its folder), segments (how many to fetch), session (its
// CMCD sid), degraded (follow degraded decisions too).
import Hls from '/npm/hls.js/dist/hls.min.mjs';
import {Decisions} from '/players/decisions.js';
import {playheadAbrController} from '/players/hlsjs.js';
import {measure, noteAnswers} from './measure.js';

const query = new URLSearchParams(location.search);
const video = document.querySelector('video');
const decisions = new Decisions({sessionId: query.get('session'), followDegraded: query.has('degraded')});
const hls = new Hls({
    abrController: playheadAbrController(Hls, decisions),
    cmcd: {sessionId: query.get('session'), contentId: query.get('title')},
    maxBufferLength: 30,
});
const answers = noteAnswers();
const watch = measure(video, Number(query.get('segments')));
hls.on(Hls.Events.FRAG_LOADED, (event, {frag}) => {
    if (frag.type === 'main' && frag.sn !== 'initSegment') {
        watch.fetched();
    }
});
hls.on(Hls.Events.ERROR, (event, {details, fatal}) => console.error('hls.js', details, fatal));

window.session = {
    get done() { return watch.done; },
    start() {
        hls.loadSource(`/${query.get('title')}/master.m3u8`);
        hls.attachMedia(video);
        video.play();
    },
    report: () => ({...watch.report(), decisions: decisions.report(), answers}),
};
