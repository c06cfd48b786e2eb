// Enlarge a card's pictures in the dialog; arrow keys show the next card, a click or Esc closes it.
const dialog = document.querySelector("dialog");
const cards = [...document.querySelectorAll("main article")];
let shown = 0;
const show = (number) => {
  shown = (number + cards.length) % cards.length;
  dialog.replaceChildren(cards[shown].cloneNode(true));
  if (!dialog.open) dialog.showModal();
};
document.addEventListener("click", ({ target }) => {
  if (dialog.open) dialog.close();
  else if (target.closest(".pictures")) show(cards.indexOf(target.closest("article")));
});
document.addEventListener("keydown", ({ key }) => {
  if (dialog.open && ["ArrowRight", "ArrowLeft"].includes(key)) show(shown + (key === "ArrowRight" ? 1 : -1));
});
