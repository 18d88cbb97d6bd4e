// What every page measures: segments fetched, seconds played, stalls. Done when enough segments came and playback ran.
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
