// Stock hls.js, which follows the EXT-X-CONTENT-STEERING of its playlist. Query: manifest, untilS (how far to play),
// bufferS. Its answers are the steering manifests, each with the address that was asked and when (s since 1970).
import Hls from '/npm/hls.js/dist/hls.min.mjs';
import {measure} from './measure.js';

const query = new URLSearchParams(location.search);
const bufferS = Number(query.get('bufferS'));
const video = document.querySelector('video');
const hls = new Hls({maxBufferLength: bufferS, maxMaxBufferLength: bufferS});
const answers = [];
const watch = measure(video, 1);
hls.on(Hls.Events.FRAG_LOADED, (event, {frag}) => {
    if (frag.type === 'main' && frag.sn !== 'initSegment') {
        watch.fetched();
    }
});
hls.on(Hls.Events.STEERING_MANIFEST_LOADED, (event, {steeringManifest, url}) => {
    const {TTL: ttl, 'PATHWAY-PRIORITY': priority} = steeringManifest;
    answers.push({atS: Date.now() / 1000, url, ttl, priority});
});
hls.on(Hls.Events.ERROR, (event, {details, fatal}) => console.error('hls.js', details, fatal));

window.session = {
    get done() { return watch.done && video.currentTime >= Number(query.get('untilS')); },
    start() {
        hls.loadSource(query.get('manifest'));
        hls.attachMedia(video);
        video.play();
    },
    report: () => ({...watch.report(), decisions: {}, answers}),
};
