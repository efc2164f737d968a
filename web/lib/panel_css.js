/** The look of the live panel: the front end's colours, and a palette of its own for the curves. */

export const PANEL_CSS = `
.tl-colours {
  --tl-text: var(--input-text, #ddd);
  --tl-dim: var(--descrip-text, #999);
  --tl-back: var(--comfy-input-bg, #222);
  --tl-raised: var(--comfy-menu-bg, #353535);
  --tl-edge: var(--border-color, #4e4e4e);
  --tl-grid: rgba(255, 255, 255, 0.09);
  --tl-loss: #6cb4ff;
  --tl-validation: #ffb454;
  --tl-drift: #d78cff;
  --tl-rate: #a5b0b8;
  --tl-good: #6fd08c;
  --tl-early: #ffcf5c;
  --tl-bad: #ff7b72;
  color: var(--tl-text);
  font: 12px/1.35 Inter, Arial, sans-serif;
  box-sizing: border-box;
}
.tl-colours[data-theme="light"] {
  --tl-back: var(--comfy-menu-bg, #f5f5f5);
  --tl-raised: var(--bg-color, #fff);
  --tl-grid: rgba(0, 0, 0, 0.1);
  --tl-loss: #0b5fc0;
  --tl-validation: #a85400;
  --tl-drift: #8a2bbf;
  --tl-rate: #56606a;
  --tl-good: #17733a;
  --tl-early: #7a5200;
  --tl-bad: #bb1e1e;
}
.tl-colours [hidden] { display: none !important; }
.tl-colours *, .tl-colours *::before { box-sizing: border-box; }
.tl-panel {
  display: flex; flex-direction: column; width: 100%; height: 100%; min-height: 36px; min-width: 0; overflow: hidden;
  padding: 6px 8px; border-radius: 8px; background: var(--tl-back); border: 1px solid var(--tl-edge);
  user-select: none; -webkit-user-select: none; container-type: inline-size;
}
.tl-panel.tl-live { min-height: 300px; }
.tl-idle { color: var(--tl-dim); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; margin: auto 0; }
.tl-body { display: flex; flex-direction: column; flex: 1 1 0; min-height: 0; gap: 5px; }
.tl-state { font-weight: 600; }
.tl-end { user-select: text; -webkit-user-select: text; cursor: text; max-height: 82px; overflow: auto; overflow-wrap: anywhere; }
.tl-end:not(:empty) { padding-left: 7px; border-left: 3px solid var(--tl-good); }
.tl-end[data-kind="early"] { border-color: var(--tl-early); }
.tl-end[data-kind="bad"] { border-color: var(--tl-bad); }
.tl-progress { height: 4px; margin: 3px 0; border-radius: 2px; background: var(--tl-grid); overflow: hidden; }
.tl-progress i { display: block; height: 100%; background: var(--tl-loss); }
.tl-figures, .tl-note { color: var(--tl-dim); font-size: 11px; font-variant-numeric: tabular-nums; }
.tl-note { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.tl-tabs { display: flex; gap: 2px; border-bottom: 1px solid var(--tl-edge); }
.tl-tabs button {
  flex: 0 1 auto; padding: 2px 8px 3px; border: 0; border-bottom: 2px solid transparent; margin-bottom: -1px;
  background: none; color: var(--tl-dim); font: inherit; cursor: pointer;
}
.tl-tabs button[aria-selected="true"] { color: var(--tl-text); border-color: var(--tl-loss); }
.tl-tabs button:hover, .tl-key:is(button):hover { color: var(--tl-text); }
.tl-count:not(:empty)::before { content: " "; white-space: pre; }
.tl-page { flex: 1 1 0; min-height: 0; display: flex; }
.tl-plot, .tl-previews { flex: 1 1 0; min-width: 0; min-height: 0; display: flex; flex-direction: column; position: relative; }
.tl-legend { display: flex; flex-wrap: wrap; align-items: center; column-gap: 9px; min-height: 18px; font-size: 11px; }
.tl-key {
  display: inline-flex; align-items: center; gap: 4px; padding: 0 1px; border: 0; background: none; color: var(--tl-dim);
  font: inherit; white-space: nowrap;
}
.tl-key:is(button) { cursor: pointer; }
.tl-key b { color: var(--tl-text); font-weight: 600; font-variant-numeric: tabular-nums; }
.tl-key[aria-pressed="false"] { opacity: 0.65; }
.tl-key[aria-pressed="false"] svg { opacity: 0.4; }
.tl-at { margin-left: auto; color: var(--tl-dim); font-variant-numeric: tabular-nums; }
.tl-frame { flex: 1 1 0; min-height: 60px; position: relative; }
.tl-canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; }
.tl-empty { flex: 1; display: flex; align-items: center; justify-content: center; height: 100%; padding: 0 6px;
  color: var(--tl-dim); text-align: center; }
.tl-strip { flex: 1 1 0; min-height: 0; display: flex; gap: 6px; overflow: auto; padding: 4px 1px; container-type: size; }
.tl-strip figure { flex: none; display: flex; flex-direction: column; gap: 3px; margin: 0; }
.tl-strip figcaption { color: var(--tl-dim); font-size: 11px; text-align: center; }
.tl-thumb { --side: max(52px, calc((100cqh - 20px) / var(--count) - 3px)); width: var(--side); height: var(--side); padding: 0; border: 1px solid var(--tl-edge); border-radius: 4px;
  background: var(--tl-raised); overflow: hidden; cursor: zoom-in; }
.tl-thumb img { display: block; width: 100%; height: 100%; object-fit: contain; }
.tl-thumb[data-chosen] { outline: 2px solid var(--tl-validation); outline-offset: 1px; }
.tl-gone { display: block; color: var(--tl-dim); font-size: 10px; }
.tl-hint { color: var(--tl-dim); font-size: 11px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.tl-buttons { display: flex; flex-wrap: wrap; gap: 4px; }
.tl-button { flex: 1 1 auto; padding: 2px 6px; border: 1px solid var(--tl-edge); border-radius: 5px; background: var(--tl-raised);
  color: var(--tl-text); font: inherit; font-size: 11.5px; cursor: pointer; white-space: nowrap; }
.tl-button:hover:not(:disabled) { border-color: var(--tl-loss); }
.tl-button:disabled { opacity: 0.45; cursor: default; }
.tl-answer { margin-top: 3px; color: var(--tl-dim); font-size: 11px; }
.tl-answer.tl-refused { color: var(--tl-bad); }
@container (max-width: 240px) {
  .tl-legend { column-gap: 6px; font-size: 10.5px; }
  .tl-key { gap: 3px; }
  .tl-key svg { width: 14px; }
  .tl-tabs button { padding: 2px 5px 3px; }
  .tl-buttons { gap: 3px; }
  .tl-button { padding: 2px 2px; font-size: 10.5px; letter-spacing: -0.1px; }
  .tl-figures { font-size: 10.5px; letter-spacing: -0.1px; }
}
.tl-colours :is(button, canvas, select):focus-visible { outline: 2px solid var(--tl-loss); outline-offset: 1px; }
.tl-overlay { position: fixed; inset: 0; z-index: 10000; display: flex; flex-direction: column; gap: 10px; padding: 14px;
  background: rgba(10, 10, 12, 0.93); --tl-text: #eee; --tl-dim: #bbb; --tl-edge: #666; --tl-raised: #333; }
.tl-bar { display: flex; flex-wrap: wrap; align-items: center; gap: 14px; }
.tl-bar label { display: inline-flex; align-items: center; gap: 6px; }
.tl-bar select { padding: 3px 6px; border: 1px solid var(--tl-edge); border-radius: 5px; background: var(--tl-raised);
  color: var(--tl-text); font: inherit; }
.tl-bar .tl-button { flex: none; margin-left: auto; padding: 3px 12px; }
.tl-sides { flex: 1 1 0; min-height: 0; display: flex; gap: 12px; justify-content: center; }
.tl-sides figure { flex: 1 1 0; min-width: 0; display: flex; flex-direction: column; gap: 6px; margin: 0; }
.tl-sides img { flex: 1 1 0; min-height: 0; width: 100%; object-fit: contain; image-rendering: auto; }
.tl-sides figcaption { order: -1; text-align: center; font-size: 13px; }
`;
