/**
 * Decisions from Playhead for one viewing, asked one segment ahead. Shared by dashjs.js and hlsjs.js; knows no player.
 *
 * While a segment downloads, the rung of the next one is asked for (POST /v1/bitrate). When the player comes to choose,
 * the answer lies here, or the player's own rules choose: a decision that is late, refused, degraded, expired or not in
 * the ladder is never followed, and nothing here ever waits or throws.
 *
 * Units: s, kbit/s (1 kbit = 1000 bit); deadlines in ms.
 */

const SAMPLES = 12; // measured downloads that Playhead looks at

export class Decisions {
    /**
     * @param {object} [options]
     * @param {string} [options.url] where to ask; the default needs no CORS: the edge serves it beside the media
     * @param {number} [options.deadlineMs] the longest to wait for an answer
     * @param {boolean} [options.followDegraded] whether to follow answers that Playhead made without its model
     * @param {string} [options.sessionId] names the viewing; the player's CMCD sid, so that what becomes of it is known
     * @param {string} [options.titleId] lets Playhead look up segment sizes and quality
     * @param {object} [options.more] more members of the question, such as cdn, asn, device, qoe
     */
    constructor({
        url = '/v1/bitrate', deadlineMs = 300, followDegraded = false, sessionId, titleId, more = {},
    } = {}) {
        this._url = url;
        this._deadlineMs = deadlineMs;
        this._followDegraded = followDegraded;
        this._about = {...more, session_id: sessionId, title_id: titleId};
        this._throughputKbps = [];
        this._downloadS = [];
        this._next = null; // the question about the next segment and, once it is there, its answer
        this._counts = {asked: 0, answered: 0, followed: 0, late: 0, failed: 0, degraded: 0, wrong: 0, expired: 0};
    }

    /**
     * A segment was downloaded.
     * @param {number} bytes
     * @param {number} tookS from the request to the last byte
     */
    measured(bytes, tookS) {
        if (bytes > 0 && tookS > 0) {
            this._throughputKbps = [...this._throughputKbps, bytes * 0.008 / tookS].slice(-SAMPLES);
            this._downloadS = [...this._downloadS, tookS].slice(-SAMPLES);
        }
    }

    /**
     * A segment starts to download: ask which rung the next one should have. Of the buffer, Playhead is told what will
     * be left when this segment has come, if the network stays as it was.
     * @param {object} state
     * @param {number} state.segmentIndex the next segment, from 0
     * @param {number} state.segmentCount segments of the title; 0: live or unknown
     * @param {number} state.segmentS its duration
     * @param {number} state.bufferS media in the buffer now
     * @param {number} state.maxBufferS the most that the player buffers
     * @param {number[]} state.rungsKbps the ladder
     * @param {number} state.lastRung the rung that downloads now, an index into rungsKbps
     * @param {Array} state.choices what the player calls these rungs
     */
    ask({segmentIndex, segmentCount, segmentS, bufferS, maxBufferS, rungsKbps, lastRung, choices}) {
        this.drop();
        if (segmentCount > 0 && segmentIndex >= segmentCount) {
            return;
        }
        const lastKbps = this._throughputKbps.at(-1);
        const downloadS = lastKbps ? rungsKbps[lastRung] * segmentS / lastKbps : 0;
        const question = {
            ...this._about,
            segment_index: segmentIndex,
            segment_count: segmentCount || undefined,
            segment_s: segmentS,
            buffer_s: Math.max(0, bufferS - downloadS) + segmentS,
            max_buffer_s: maxBufferS,
            last_rung: lastRung,
            throughput_kbps: this._throughputKbps,
            download_s: this._downloadS,
            rungs_kbps: rungsKbps,
        };
        const next = {
            choices, choice: undefined, untilMs: 0, missing: 'late', settled: false, counted: false,
            abort: new AbortController(),
        };
        this._next = next;
        this._counts.asked += 1;
        this._fetch(question, next);
    }

    async _fetch(question, next) {
        const timer = setTimeout(() => next.abort.abort(), this._deadlineMs);
        try {
            const answer = await fetch(this._url, {
                method: 'POST',
                headers: {'Content-Type': 'application/json'},
                body: JSON.stringify(question),
                signal: next.abort.signal,
                credentials: 'omit',
                cache: 'no-store',
            });
            const decision = answer.ok ? await answer.json() : null;
            this._counts.answered += 1;
            next.missing = decision === null ? 'failed' : this._flaw(decision, next.choices.length);
            if (!next.missing) {
                next.choice = next.choices[decision.rung];
                next.untilMs = performance.now() + 1000 * decision.ttl_s;
            }
        } catch (error) {
            next.missing = next.abort.signal.aborted ? 'late' : 'failed';
        } finally {
            clearTimeout(timer);
            next.settled = true;
        }
    }

    /** Why a decision cannot be followed; empty where it can. */
    _flaw(decision, count) {
        const {rung, ttl_s: ttlS, degraded} = decision ?? {};
        if (!Number.isInteger(rung) || rung < 0 || rung >= count || !(ttlS > 0) || !Array.isArray(degraded)) {
            return 'wrong';
        }
        const withoutModel = degraded.some((reason) => reason !== 'stale_model');
        return withoutModel && !this._followDegraded ? 'degraded' : '';
    }

    /**
     * The player comes to choose the next segment's rung.
     * @returns one of the question's choices; undefined: let the player's own rules choose
     */
    choose() {
        const next = this._next;
        if (next === null) {
            return undefined;
        }
        if (!next.missing && performance.now() > next.untilMs) {
            next.missing = 'expired';
            next.choice = undefined;
        }
        if (!next.counted) {
            next.counted = true; // players ask more than once for a segment
            this._counts[next.missing || 'followed'] += 1;
        }
        return next.choice;
    }

    /** What was asked no longer holds: a seek, or a download that was given up. */
    drop() {
        this._next?.abort.abort();
        this._next = null;
    }

    /** Whether nothing is on its way. */
    get settled() {
        return this._next?.settled ?? true;
    }

    /** How often it was asked, answered and followed, and why not. */
    report() {
        return {...this._counts};
    }
}
