// What every page measures: segments fetched, seconds played, stalls, and the decisions that Playhead gave. Done when
// enough segments came and playback ran.

/** Note each answer of /v1/bitrate that comes in time: for which segment (index from 0), which bitrate of the question. */
export function noteAnswers() {
    const answers = [];
    const fetchAsBefore = window.fetch;
    window.fetch = async (url, request) => {
        const answer = await fetchAsBefore(url, request);
        if (String(url).endsWith('/v1/bitrate') && answer.ok) {
            const question = JSON.parse(request.body);
            const {rung, degraded} = await answer.clone().json();
            answers.push({index: question.segment_index, rung, question, degraded});
        }
        return answer;
    };
    return answers;
}

export function measure(video, segments) {
    let fetched = 0;
    let stalls = 0;
    let started = false;
    video.addEventListener('playing', () => { started = true; });
    video.addEventListener('waiting', () => { stalls += started ? 1 : 0; });
    return {
        fetched() { fetched += 1; },
        get done() { return fetched >= segments && video.currentTime > 1; },
        report: () => ({fetched, stalls, played_s: video.currentTime, error: video.error?.message ?? null}),
    };
}
