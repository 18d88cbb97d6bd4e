// Stock dash.js, which follows the ContentSteering of its manifest. Query: manifest, untilS (how far to play), bufferS.
// Its answers are the steering manifests, each with the address that was asked and when (s since 1970).
import dashjs from '/npm/dashjs/dist/modern/esm/dash.all.min.js';
import {measure} from './measure.js';

const query = new URLSearchParams(location.search);
const bufferS = Number(query.get('bufferS'));
const video = document.querySelector('video');
const player = dashjs.MediaPlayer().create();
player.initialize();
player.updateSettings({
    streaming: {buffer: {
        bufferTimeDefault: bufferS, bufferTimeAtTopQuality: bufferS, bufferTimeAtTopQualityLongForm: bufferS,
    }},
});
const answers = [];
const watch = measure(video, 1);
player.on(dashjs.MediaPlayer.events.FRAGMENT_LOADING_COMPLETED, ({request, response}) => {
    if (request.mediaType === 'video' && !request.isInitializationRequest() && response) {
        watch.fetched();
    }
});
player.on(dashjs.MediaPlayer.events.CONTENT_STEERING_REQUEST_COMPLETED, ({currentSteeringResponseData, url}) => {
    const {ttl, pathwayPriority} = currentSteeringResponseData;
    answers.push({atS: Date.now() / 1000, url, ttl, priority: pathwayPriority});
});
player.on(dashjs.MediaPlayer.events.ERROR, ({error}) => console.error('dash.js', error.code, error.message));

window.session = {
    get done() { return watch.done && video.currentTime >= Number(query.get('untilS')); },
    start() {
        player.attachView(video);
        player.setAutoPlay(true);
        player.attachSource(new URL(query.get('manifest'), location).href);
    },
    report: () => ({...watch.report(), decisions: {}, answers}),
};
