// The viewer: slices as the server draws them, at once and on any machine; three planes by NiiVue on demand.
const viewer = document.getElementById("viewer");
const { base } = viewer.dataset;
const count = Number(viewer.dataset.count);
const [scan, heat, canvas, busy, slider, place, opacity, full] =
  ["scan", "heat", "planes", "busy", "slice", "place", "opacity", "full"].map((id) => document.getElementById(id));
const screen_ = viewer.querySelector(".screen");
const frame = viewer.querySelector(".frame");
const boxes = [...viewer.querySelectorAll(".box")];
const jumps = [...document.querySelectorAll("[data-region]")];
const WINDOWS = { lung: [-1350, 150], mediastinum: [-160, 240] }; // HU, as in volumes.py
const FEW_VOXELS = 64e6; // above it a whole volume asks for a gigabyte of the GPU
let slice = Number(viewer.dataset.slice);
let window_ = "lung";
let planes = null; // NiiVue, once three planes were asked for
let region = -1;
let mode = "slices";
let size = null; // which volumes NiiVue holds: "" whole, "-small" thinned

// --- slices -------------------------------------------------------------------------------------------------------
const kept = new Map(); // pictures of this page; browsers store none of them (no-store)

function picture(kind, k) {
  const url = `${base}/${kind}/${k}.png`;
  if (!kept.has(url)) {
    const image = new Image();
    image.src = url;
    kept.set(url, image);
    if (kept.size > 400) kept.delete(kept.keys().next().value);
  }
  return kept.get(url);
}

function show(k) {
  slice = Math.min(Math.max(k, 0), count - 1);
  slider.value = slice;
  place.value = `slice ${slice} of ${count - 1}`;
  scan.src = picture(window_, slice).src;
  scan.alt = `slice ${slice} of the scan, ${window_} window`;
  if (heat) heat.src = picture("map", slice).src;
  for (const box of boxes) box.hidden = slice < Number(box.dataset.first) || slice > Number(box.dataset.last);
  for (const k of [slice + 1, slice - 1]) if (k >= 0 && k < count) picture(window_, k);
}

function lay() {
  // the map and the boxes lie exactly on the picture, whatever its size
  const { offsetLeft: left, offsetTop: top, offsetWidth: width, offsetHeight: height } = scan;
  const cover = (element, x, y, w, h) =>
    Object.assign(element.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
  if (heat) cover(heat, left, top, width, height);
  for (const box of boxes) {
    const [x, y, w, h] = box.dataset.box.split(",").map(Number);
    const rim = 4;
    cover(box, left + (x / 100) * width - rim, top + (y / 100) * height - rim,
      (w / 100) * width + 2 * rim, (h / 100) * height + 2 * rim);
  }
}

// --- three planes -------------------------------------------------------------------------------------------------
function loadScript(url) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = resolve;
    script.onerror = () => reject(new Error("the viewer's library cannot be loaded"));
    document.head.append(script);
  });
}

function drawsInSoftware() {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) throw new Error("this browser has no WebGL 2; the slices show the same");
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|software|basic render/i.test(name);
}

function say(words) {
  busy.textContent = words;
  busy.hidden = !words;
}

async function startPlanes() {
  const weak = drawsInSoftware() || Number(viewer.dataset.voxels) > FEW_VOXELS || innerWidth < 740;
  if (!globalThis.niivue) await loadScript(viewer.dataset.niivue);
  planes = new niivue.Niivue({
    isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, loadingText: "",
    backColor: [0, 0, 0, 1], crosshairColor: [1, 0.82, 0.25, 0.6], crosshairWidth: 1, crosshairGap: 8, logLevel: "error",
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER, isCornerOrientationText: false,
  });
  planes.addColormap("ctguard", { // as the reports' figures: yellow low, red high
    R: [255, 255], G: [217, 0], B: [0, 0], A: [255, 255], I: [0, 255],
  });
  await planes.attachToCanvas(canvas);
  await loadVolumes(weak && viewer.dataset.thinned ? "-small" : "");
}

async function loadVolumes(wanted) {
  const [low, high] = WINDOWS[window_];
  const load = (name, how) => niivue.NVImage.loadFromUrl({ url: `${base}/${name}${wanted}.nii`, name: `${name}.nii`, ...how });
  const coming = heat && load("map", { colormap: "ctguard", cal_min: 0, cal_max: 1, opacity: Number(opacity.value) / 100 });
  const volume = await load("ct", { colormap: "gray", cal_min: low, cal_max: high });
  planes.volumes = [];
  planes.addVolume(volume);
  if (heat) {
    const map = await coming;
    Object.assign(map, { modulationImage: 1, modulateAlpha: 1 }); // the lower the map, the clearer
    planes.addVolume(map);
  }
  size = viewer.dataset.planes = wanted;
  cross();
}

function cross() {
  const ras = jumps[region]?.dataset.ras.split(",").map(Number);
  if (size === null || !ras) return;
  planes.scene.crosshairPos = planes.mm2frac(ras);
  planes.drawScene();
}

function arrange() {
  for (const button of viewer.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === mode));
  }
  frame.hidden = slider.hidden = place.hidden = mode === "planes";
  canvas.hidden = mode === "slices";
  full.hidden = mode === "slices" || size !== "-small";
}

async function view(name) {
  mode = name;
  arrange();
  if (mode === "slices" || planes) return;
  say("Loading three planes …");
  try {
    await startPlanes();
    say("");
  } catch (error) {
    planes = null;
    mode = "slices";
    say(`Three planes cannot be shown: ${error.message}.`);
  }
  arrange();
}

// --- what the person does -----------------------------------------------------------------------------------------
function setWindow(name) {
  window_ = name;
  for (const button of viewer.querySelectorAll("[data-window]")) {
    button.setAttribute("aria-pressed", String(button.dataset.window === name));
  }
  if (size !== null) {
    [planes.volumes[0].cal_min, planes.volumes[0].cal_max] = WINDOWS[name];
    planes.updateGLVolume();
  }
  show(slice);
}

function setOpacity(percent, settled = true) {
  if (!heat) return;
  opacity.value = percent;
  heat.style.opacity = Number(opacity.value) / 100;
  if (!settled) return; // NiiVue blends the whole volume anew
  if (size !== null) planes.setOpacity(1, Number(opacity.value) / 100);
}

function jump(index) {
  region = index;
  show(Number(jumps[index].dataset.slice));
  for (const [k, button] of jumps.entries()) button.setAttribute("aria-current", String(k === index));
  cross();
}

let before = 60;
const KEYS = {
  ArrowUp: () => show(slice + 1), ArrowDown: () => show(slice - 1),
  PageUp: () => show(slice + 10), PageDown: () => show(slice - 10),
  l: () => setWindow("lung"), m: () => setWindow("mediastinum"),
  "[": () => setOpacity(Number(opacity?.value) - 10), "]": () => setOpacity(Number(opacity?.value) + 10),
  o: () => {
    const now = Number(opacity?.value);
    setOpacity(now ? 0 : before);
    if (now) before = now;
  },
  r: () => jumps.length && jump((region + 1) % jumps.length),
  p: () => view(mode === "slices" ? "planes" : "slices"),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || writes(event.target) || !KEYS[event.key]) return;
  KEYS[event.key]();
  event.preventDefault();
});
viewer.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.window) setWindow(button.dataset.window);
  if (button?.dataset.view) view(button.dataset.view);
});
for (const [k, button] of jumps.entries()) button.addEventListener("click", () => jump(k));
slider.addEventListener("input", () => show(Number(slider.value)));
opacity?.addEventListener("input", () => setOpacity(Number(opacity.value), false));
opacity?.addEventListener("change", () => setOpacity(Number(opacity.value)));
full.addEventListener("click", async () => {
  say("Loading every voxel; without a graphics card this takes a minute …");
  await loadVolumes("");
  say("");
  arrange();
});
frame.addEventListener("wheel", (event) => {
  show(slice - Math.sign(event.deltaY));
  event.preventDefault();
}, { passive: false });
new ResizeObserver(lay).observe(screen_);
scan.addEventListener("load", lay);
lay();
show(slice);
