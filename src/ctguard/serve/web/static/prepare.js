// A case whose pictures are not there yet: ask for them, then show the page again.
"use strict";

const part = document.getElementById("preparing");
const busy = part.querySelector(".busy");

async function prepare() {
  const answer = await fetch(part.dataset.prepare);
  if (answer.status === 503) setTimeout(prepare, 2000);
  else if (answer.ok && !answer.redirected) location.reload();
  else busy.textContent = "The pictures of this case cannot be made. The node's log says why.";
}
prepare();
