// Runs the models beside the page, so that it stays responsive: {id, method, argument} -> {id, result} or {id, error}.

import { Models } from "./model.js";

const models = Models.load();
models.then(() => postMessage({ ready: true }), (error) => postMessage({ failed: String(error.message ?? error) }));

let last = Promise.resolve();
onmessage = ({ data: { id, method, argument } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, result: await (await models)[method](argument) });
    } catch (error) {
      postMessage({ id, error: String(error.message ?? error) });
    }
  });
};
