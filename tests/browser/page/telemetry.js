// What the pages of telemetry have in common. Query: manifest, session (its CMCD sid), title (its CMCD cid), target (where
// event mode reports to; none: version 1 with the media requests), headers (version 1 in headers, not in the query),
// responses (report each response, too), startS, untilS (where to begin, how far to play), bufferS.
import {measure} from './measure.js';

const query = new URLSearchParams(location.search);

export const settings = {
    manifest: new URL(query.get('manifest'), location).href,
    session: query.get('session'),
    title: query.get('title'),
    target: query.get('target'),
    headers: query.has('headers'),
    responses: query.has('responses'),
    startS: Number(query.get('startS') ?? 0),
    bufferS: Number(query.get('bufferS') ?? 4),
};

/**
 * What drive.mjs asks of a page: done where the playhead stands far enough, at the end, or soon after `fail` was called.
 * Without another count of stalls it is the element's.
 */
export function session(video, start, stalls) {
    const watch = measure(video, 0);
    const untilS = Number(query.get('untilS'));
    let failed = false;
    return {
        get done() { return failed || video.ended || video.currentTime >= untilS; },
        get stalls() { return stalls?.() ?? watch.report().stalls; },
        get playedS() { return video.currentTime; },
        fail() { setTimeout(() => { failed = true; }, 300); },
        start,
        report: () => ({...watch.report(), ...stalls && {stalls: stalls()}, decisions: {}, answers: []}),
    };
}
