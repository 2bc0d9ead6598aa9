// A round of an answer is a button: click, Enter or space shows its tree, arrows go from round to round.
const rounds = () => [...element.querySelectorAll('[data-round]')];
const pick = (round) => {
  rounds().forEach((other) => other.classList.toggle('picked', other === round));
  trigger('pick', {turn: Number(round.dataset.turn), round: Number(round.dataset.round)});
};
element.addEventListener('click', (event) => {
  const round = event.target.closest('[data-round]');
  if (round) pick(round);
});
element.addEventListener('keydown', (event) => {
  const round = event.target.closest('[data-round]');
  if (!round) return;
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (event.key === 'Enter' || event.key === ' ') pick(round);
  else if (step) {
    const all = rounds();
    all[all.indexOf(round) + step]?.focus();
  } else return;
  event.preventDefault();
});
