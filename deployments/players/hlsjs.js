/**
 * hls.js (1.7): an abrController that lets Playhead choose the level of each segment, one segment ahead.
 *
 *     import Hls from 'hls.js';
 *     import {Decisions} from './decisions.js';
 *     import {playheadAbrController} from './hlsjs.js';
 *     const decisions = new Decisions({sessionId: 's-81', titleId: '242'});
 *     const hls = new Hls({abrController: playheadAbrController(Hls, decisions)});
 *     hls.loadSource('https://media.example/242/master.m3u8');
 *     hls.attachMedia(video);
 *
 * It extends hls.js's own controller, which keeps measuring and guarding downloads, and chooses wherever there is no
 * decision to follow.
 */

/**
 * @param {object} Hls the library
 * @param {Decisions} decisions of this viewing
 * @returns {object} a class for `abrController` of the Hls configuration
 */
export function playheadAbrController(Hls, decisions) {
    const {MANIFEST_LOADING, MEDIA_ATTACHED, FRAG_LOADING, FRAG_LOADED, FRAG_LOAD_EMERGENCY_ABORTED, ERROR} = Hls.Events;

    return class PlayheadAbrController extends Hls.DefaultConfig.abrController {
        constructor(hls) {
            super(hls);
            this._drop = () => decisions.drop();
            this._watched = [
                [FRAG_LOADING, (event, {frag}) => this._ask(frag)],
                [FRAG_LOADED, (event, {frag}) => this._measure(frag)],
                [FRAG_LOAD_EMERGENCY_ABORTED, this._drop],
                [MANIFEST_LOADING, this._drop],
                [ERROR, this._drop],
                [MEDIA_ATTACHED, (event, {media}) => media.addEventListener('seeking', this._drop)],
            ];
            this._watched.forEach(([event, listener]) => hls.on(event, listener));
        }

        _ask(frag) {
            if (frag.type !== 'main' || frag.sn === 'initSegment') {
                return;
            }
            const levels = this.hls.levels;
            const details = levels[frag.level].details;
            decisions.ask({
                segmentIndex: frag.sn + 1 - (details.live ? 0 : details.startSN),
                segmentCount: details.live ? 0 : details.fragments.length,
                segmentS: frag.duration,
                bufferS: this.hls.mainForwardBufferInfo?.len ?? 0,
                maxBufferS: this.hls.maxBufferLength,
                rungsKbps: levels.map(level => level.bitrate / 1000),
                lastRung: frag.level,
                choices: levels.map((level, index) => index),
            });
        }

        _measure(frag) {
            if (frag.type === 'main' && frag.sn !== 'initSegment') {
                decisions.measured(frag.stats.loaded, (frag.stats.loading.end - frag.stats.loading.start) / 1000);
            }
        }

        get nextAutoLevel() {
            const level = this.hls ? decisions.choose() : undefined;
            if (level === undefined) {
                return super.nextAutoLevel;
            }
            return Math.min(Math.max(level, this.hls.minAutoLevel), this.hls.maxAutoLevel);
        }

        set nextAutoLevel(level) {
            super.nextAutoLevel = level;
        }

        destroy() {
            this._watched.forEach(([event, listener]) => this.hls?.off(event, listener));
            this.hls?.media?.removeEventListener('seeking', this._drop);
            decisions.drop();
            super.destroy();
        }
    };
}
