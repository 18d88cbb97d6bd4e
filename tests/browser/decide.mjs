// Uses the shipped client outside a browser, for one test: asks about one segment, waits until the question is settled,
// prints what it would follow and what it counted. Arguments, as JSON: options of Decisions, ageMs (before choosing).
import {Decisions} from '../../deployments/players/decisions.js';

const {options, ageMs} = JSON.parse(process.argv[2]);
const decisions = new Decisions(options);
decisions.measured(250_000, 1);
const state = {
    segmentIndex: 4, segmentCount: 18, segmentS: 2, bufferS: 8, maxBufferS: 30,
    rungsKbps: [240, 500, 950, 1700, 3000], lastRung: 1, choices: ['a', 'b', 'c', 'd', 'e'],
};
decisions.ask(state);
const atOnce = decisions.choose() ?? null;
decisions.ask(state);
const deadline = performance.now() + 10_000;
while (!decisions.settled && performance.now() < deadline) {
    await new Promise(resolve => setTimeout(resolve, 10));
}
await new Promise(resolve => setTimeout(resolve, ageMs));
const choice = decisions.choose() ?? null;
const again = decisions.choose() ?? null;
const counts = decisions.report();
decisions.ask({...state, segmentIndex: 18});
const pastTheEnd = decisions.choose() ?? null;
process.stdout.write(JSON.stringify({atOnce, choice, again, counts, pastTheEnd, askedAtTheEnd: decisions.report().asked}));
