// What others make of CMCD, for one test: cmcd-validator of version 1, SVTA's Common Media Library of version 2. Reads a list
// from stdin, each with mode (query, headers, event), text (the decoded query parameter, or event mode's body) or headers;
// prints a list of verdicts: valid, why not. Of event mode there is a verdict for each line.
import {createRequire} from 'node:module';
import {validateCmcdEvents, validateCmcdHeaders, validateCmcdRequest} from '@svta/cml-cmcd';

for (const name of ['debug', 'error', 'info', 'log', 'trace', 'warn']) {
    console[name] = () => {};  // cmcd-validator tells of each step
}
const {CMCDHeaderValidator, CMCDQueryValidator} = createRequire(import.meta.url)('@montevideo-tech/cmcd-validator');
const media = 'https://media.example/segment.m4s';
const headerNames = {'cmcd-object': 'CMCD-Object', 'cmcd-request': 'CMCD-Request', 'cmcd-session': 'CMCD-Session', 'cmcd-status': 'CMCD-Status'};

const first = ({valid, errors}) => ({valid, why: errors.map(({key, description}) => `${key}: ${description}`)});
const second = ({valid, issues}) => ({
    valid, why: issues.filter(({severity}) => severity === 'error').map(({key, message}) => `${key}: ${message}`),
});
const saysVersion2 = text => /(^|,)v=2(,|$)/.test(text);

function judge({mode, text, headers}) {
    if (mode === 'event') {
        return second(validateCmcdEvents(text, {version: 2}));
    }
    if (mode === 'query') {
        const url = `${media}?CMCD=${encodeURIComponent(text)}`;
        return saysVersion2(text) ? second(validateCmcdRequest({url}, {version: 2})) : first(CMCDQueryValidator(url));
    }
    if (Object.values(headers).some(saysVersion2)) {
        return second(validateCmcdHeaders(headers, {version: 2}));
    }
    const lines = Object.entries(headers).map(([name, value]) => `${headerNames[name]}: ${value}`);
    return first(CMCDHeaderValidator(`GET ${media} HTTP/1.1\n${lines.join('\n')}`));
}

let given = '';
for await (const chunk of process.stdin) {
    given += chunk;
}
const verdicts = JSON.parse(given).map(one => {
    try {
        return judge(one);
    } catch (error) {
        return {valid: false, why: [`${error}`]};
    }
});
process.stdout.write(JSON.stringify(verdicts));
