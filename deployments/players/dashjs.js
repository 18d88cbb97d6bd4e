/**
 * dash.js (5.x): let Playhead choose the video rung of each segment, one segment ahead.
 *
 *     import dashjs from 'dashjs';
 *     import {Decisions} from './decisions.js';
 *     import {followPlayhead} from './dashjs.js';
 *     const player = dashjs.MediaPlayer().create();
 *     player.initialize(video);
 *     followPlayhead(dashjs, player, new Decisions({sessionId: 's-81', titleId: '242'}));
 *     player.attachSource('https://media.example/242/manifest.mpd');
 *
 * It adds a custom quality-switch rule with strong priority: its choice goes before those of dash.js's own rules. Where
 * there is no decision to follow, the rule proposes nothing and they choose: they are the fallback, so leave them active.
 * AbandonRequestsRule keeps guarding downloads. Fast switching (replacing buffered segments by better ones) is turned
 * off: Playhead plans segments in order, and what is downloaded twice is not in its plan.
 */

/**
 * @param {object} dashjs the library
 * @param {object} player a MediaPlayer, initialised, before attachSource
 * @param {Decisions} decisions of this viewing
 */
export function followPlayhead(dashjs, player, decisions) {
    const {FRAGMENT_LOADING_STARTED, FRAGMENT_LOADING_COMPLETED, FRAGMENT_LOADING_ABANDONED, PLAYBACK_SEEKING} =
        dashjs.MediaPlayer.events;
    const isVideo = request => request?.mediaType === 'video' && request.type === 'MediaSegment';

    player.on(FRAGMENT_LOADING_STARTED, ({request}) => {
        if (!isVideo(request)) {
            return;
        }
        const rungs = player.getRepresentationsByType('video');
        decisions.ask({
            segmentIndex: request.index + 1,
            segmentCount: player.isDynamic() ? 0 : request.representation.mediaFinishedInformation?.numberOfSegments,
            segmentS: request.duration,
            bufferS: player.getBufferLength('video') || 0,
            maxBufferS: player.getSettings().streaming.buffer.bufferTimeDefault,
            rungsKbps: rungs.map(rung => rung.bitrateInKbit),
            lastRung: rungs.findIndex(rung => rung.id === request.representation.id),
            choices: rungs.map(rung => rung.id),
        });
    });
    player.on(FRAGMENT_LOADING_COMPLETED, ({request, error}) => {
        if (isVideo(request) && !error) {
            decisions.measured(request.bytesLoaded, (request.endDate - request.startDate) / 1000);
        }
    });
    player.on(FRAGMENT_LOADING_ABANDONED, ({request}) => isVideo(request) && decisions.drop());
    player.on(PLAYBACK_SEEKING, () => decisions.drop());

    function PlayheadRule() {
        const SwitchRequest = dashjs.FactoryMaker.getClassFactoryByName('SwitchRequest');
        const context = this.context;
        return {
            getSwitchRequest(rules) {
                const proposal = SwitchRequest(context).create();
                const id = rules.getMediaType() === 'video' ? decisions.choose() : undefined;
                const allowed = rules.getAbrController().getPossibleVoRepresentationsFilteredBySettings(rules.getMediaInfo());
                const chosen = allowed.find(rung => rung.id === id);
                if (chosen) {
                    proposal.representation = chosen;
                    proposal.priority = SwitchRequest.PRIORITY.STRONG;
                    proposal.reason = {message: 'Playhead'};
                    proposal.rule = 'PlayheadRule';
                }
                return proposal;
            },
        };
    }
    PlayheadRule.__dashjs_factory_name = 'PlayheadRule';
    player.addABRCustomRule('qualitySwitchRules', 'PlayheadRule', dashjs.FactoryMaker.getClassFactory(PlayheadRule));
    player.updateSettings({streaming: {buffer: {fastSwitchEnabled: false}}});
}
